"""What operators see: live statistics, Prometheus metrics, the table of open connections."""
