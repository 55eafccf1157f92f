"""Several nodes on one PostgreSQL, each a real server with a state directory of its own, and the same keys."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.support.server_process import ServerProcess

TIMEOUT = 1.0
"""How many seconds the nodes give a query."""


@contextmanager
def nodes(
    folder: Path, urls: Sequence[str], *, expected: tuple[str, ...] = (), **settings: Any
) -> Iterator[list[ServerProcess]]:
    """Run a node for each URL of the database; at the end they stop with status 0 and nothing unexpected in the log.

    Args:
        folder: of their state directories.
        urls: where each finds the database.
        expected: texts that lines of their logs at level warning or above may contain.
        settings: of all, as of `ServerProcess`.
    """
    settings = {
        "POSTGRES__TIMEOUT": TIMEOUT,
        "KEEPALIVE__PING_INTERVAL": 1,
        "HISTORY__SIZE": 1_000_000,
        **settings,
    }
    with ExitStack() as ends:
        servers: list[ServerProcess] = []
        for number, url in enumerate(urls):
            server = ServerProcess(
                state_dir=folder / f"node-{number}",
                expected=("node_silent", *expected),  # on a busy machine
                EVENT_LOG=url,
                NODE=f"node-{number}",
                **settings,
            )
            if servers:
                server.state_dir.mkdir(mode=0o700, parents=True)
                shutil.copytree(servers[0].state_dir / "keys", server.state_dir / "keys")
            ends.callback(_kill, server)
            server.start()
            servers.append(server)
        yield servers
        for server in servers:
            assert server.stop() == 0
        for server in servers:
            server.check_log()


def _kill(server: ServerProcess) -> None:
    if server.process is not None:
        server.kill()
