"""A node of a cluster in a process of its own: ``python -m tests.support.cluster_nodes KIND NUMBER WHERE WORD``.

It answers ``echo`` with the word, and ``count`` with how often it was asked for that, prints ``started`` once it has
joined, and runs until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sse_app.cluster.base import Cluster
from sse_app.cluster.machines import Machines
from sse_app.cluster.workers import Workers
from sse_app.storage.postgres.database import Database

LONG = 30.0
"""Seconds to wait for an answer that a test would not notice by chance: no machine is that busy."""


def make_node(kind: str, number: int, where: str) -> Cluster:
    """Return a node that has not joined yet.

    Args:
        kind: ``workers`` of one machine, or ``machines``.
        number: of the node.
        where: what the nodes share, a directory or a database.
    """
    if kind == "workers":
        return Workers(number, Path(where))
    return Machines(Database(where), f"web{number}", f"place {number}")


async def _run(kind: str, number: str, where: str, word: str) -> None:
    node = make_node(kind, int(number), where)
    asked: list[object] = []

    def echo(node: str, payload: object) -> list[object]:
        asked.append(payload)
        return [node, payload, word]

    node.answer("echo", echo)
    node.answer("count", lambda node, payload: len(asked))
    await node.open()
    await node.start()
    print("started", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Run the node that the arguments describe."""
    asyncio.run(_run(*sys.argv[1:]))


if __name__ == "__main__":
    main()
