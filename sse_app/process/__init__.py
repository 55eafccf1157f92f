"""The life of a server process: start, signals, sockets, systemd, logs, shutdown.

`server` is that life, and `dry_run` tries its start. A record of `logs` gets its form in `log_format`; `log_writer`
queues the line and writes it from a thread, unless `log_limits` leaves it out.
"""
