"""The life of a server process: start, signals, sockets, systemd, logs, shutdown."""
