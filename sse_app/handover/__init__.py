"""Graceful restart: passes live connections to the next process.

`protocol` has the steps; `sender` and `receiver` are the two processes; `message` and `reassembly` describe the
connections; `fd_passing` passes their sockets. `warm` starts the next process, `standby` bridges a restart, and `cold`
uses systemd's file descriptor store (`fd_store`).
"""
