"""PgBouncer before a PostgreSQL, as an operator would run it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.support.ports import reserved_port
from tests.support.postgres import Postgres, server_directory, server_user
from tests.support.programs import require
from tests.support.waiting import until

CONFIGURATION = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = trust
auth_file = {directory}/users
pool_mode = {mode}
default_pool_size = 20
logfile = {directory}/pgbouncer.log
pidfile = {directory}/pgbouncer.pid
"""


@contextmanager
def pgbouncer(postgres: Postgres, mode: str) -> Iterator[int]:
    """Run PgBouncer in a mode (``transaction``, ``session``) before a server, and yield its port."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/bin") or require("pgbouncer")
    with server_directory() as directory, reserved_port() as port:
        (directory / "users").write_text('"app" ""\n"postgres" ""\n')
        configuration = CONFIGURATION.format(
            host=postgres.host, port=postgres.port, own=port, directory=directory, mode=mode
        )
        (directory / "pgbouncer.ini").write_text(configuration)
        process = subprocess.Popen(
            [program, "--quiet", str(directory / "pgbouncer.ini")],
            user=server_user(),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def answers() -> bool:
            assert process.poll() is None, (directory / "pgbouncer.log").read_text()
            try:
                psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres").close()
            except psycopg.OperationalError:
                return False
            return True

        try:
            until(answers, "PgBouncer answers")
            yield port
        finally:
            process.terminate()
            process.wait()
