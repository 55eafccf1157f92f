"""What a node reads and writes of a cluster in PostgreSQL: its row among the nodes, and long messages.

The functions are in ``storage/postgres/sql/…_nodes.sql``.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import NamedTuple

from sse_app.cluster.base import ASK_TIMEOUT
from sse_app.core.errors import StateError
from sse_app.storage.postgres.database import Database
from sse_app.version import VERSION

SILENCE = 3.0
"""After how many seconds without a heartbeat a node is not waited for, and its name may be another machine's."""

FORGET_TIME = 300.0
"""After how many seconds without a heartbeat a node is taken for one that is not to come back."""

KEEP_TIME = 7 * 86_400.0
"""For how many seconds the number of such a node is kept for it: streams with that number may still be named."""

MESSAGE_TIME = 30.0
"""After how many seconds a long message that was not read is deleted."""

_CLAIM_PAUSE = 0.2
_CLAIM = "SELECT * FROM sse_app.claim_node(%s, %s, %s, %s, %s, %s, %s)"
_BEAT = "SELECT * FROM sse_app.beat(%s, %s::smallint, %s, %s, %s, %s, %s, %s)"
_LEAVE = "SELECT sse_app.leave(%s, %s, %s, %s)"
_STORE = "INSERT INTO sse_app.messages (body) VALUES (%b) RETURNING id"
_READ = "SELECT body FROM sse_app.messages WHERE id = %s"
_TAKE = "DELETE FROM sse_app.messages WHERE id = %s RETURNING body"
_SWEEP = "DELETE FROM sse_app.messages WHERE at < clock_timestamp() - %s"


class Row(NamedTuple):
    """A node as the database has it.

    Args:
        name: of the node.
        number: of the node.
        instance: grows from one process of a node to the next.
        is_here: whether it is of the same place as the one that asks.
        age: how many seconds ago it was heard.
        clock: the time of the database, in seconds since 1970.
        secret: what all nodes share.
    """

    name: str
    number: int
    instance: int
    is_here: bool
    age: float
    clock: float
    secret: bytes


class Registry:
    """Reads and writes for one node.

    Args:
        database: of the cluster.
        name: of the node.
        place: the machine, and what one server at a time uses there. A process of the same place takes over at once.
    """

    def __init__(self, database: Database, name: str, place: str) -> None:
        self.database = database
        self.number = 0
        self._name = name
        self._place = place

    async def claim(self) -> float:
        """Claim the name, learn the number of the node, and return how far the database's clock is ahead.

        That is in seconds, of the monotonic clock here.

        Raises:
            StateError: a node of another place has the name, and is there; or there are too many nodes.
            DatabaseUnavailable: the database cannot be used.
        """
        forget, keep = timedelta(seconds=FORGET_TIME), timedelta(seconds=KEEP_TIME)
        heard = unheard_since = None
        began = time.monotonic()
        while True:
            silence = timedelta(seconds=SILENCE)
            claimed = (self._name, self._place, VERSION, silence, forget, keep, unheard_since)
            async with self.database.connection() as connection:
                row = await (await connection.execute(_CLAIM, claimed)).fetchone()
            assert row is not None
            number, heard_now, clock = row
            if number is not None:
                self.number = int(number)
                return float(clock) - time.monotonic()
            if heard_now is None:
                raise StateError("there are 511 nodes on this database, which is as many as there may be")
            if heard is not None and heard_now != heard:
                raise StateError(
                    f"another machine is the node {self._name} of this database: give this one another name "
                    "with the setting node"
                )
            heard = heard_now
            if time.monotonic() > began + SILENCE:
                unheard_since = heard
            await asyncio.sleep(_CLAIM_PAUSE)

    async def beat(self, instance: int, said: list[str]) -> list[Row]:
        """Note that the node is there, notify the others, and return all nodes.

        Args:
            instance: of this process; 0 where it has none yet.
            said: payloads of notifications.

        Raises:
            DatabaseUnavailable: the database cannot be used.
        """
        silence, forget = timedelta(seconds=SILENCE), timedelta(seconds=FORGET_TIME)
        beat = (self._name, self.number, self._place, VERSION, instance, said, silence, forget)
        async with self.database.connection(ASK_TIMEOUT, apart=True) as connection:
            rows = await (await connection.execute(_BEAT, beat)).fetchall()
        return [Row(*row) for row in rows]

    async def leave(self, instance: int, said: list[str]) -> None:
        """Tell that the node is not to be waited for.

        Raises:
            DatabaseUnavailable: the database cannot be used.
        """
        async with self.database.connection(ASK_TIMEOUT) as connection:
            await connection.execute(_LEAVE, (self._name, self._place, instance, said))

    async def store(self, message: bytes) -> int:
        """Keep a long message for those that are told its id, which is returned.

        Raises:
            DatabaseUnavailable: the database cannot be used.
        """
        async with self.database.connection() as connection:
            row = await (await connection.execute(_STORE, (message,))).fetchone()
        assert row is not None
        return int(row[0])

    async def stored(self, number: int, *, last: bool) -> bytes | None:
        """Return a long message, or None where it has expired.

        Args:
            number: its id.
            last: whether no other node is to read it.

        Raises:
            DatabaseUnavailable: the database cannot be used.
        """
        async with self.database.connection() as connection:
            cursor = await connection.execute(_TAKE if last else _READ, (number,), binary=True)
            row = await cursor.fetchone()
        return None if row is None else bytes(row[0])

    async def sweep(self) -> None:
        """Delete long messages that were not read.

        Raises:
            DatabaseUnavailable: the database cannot be used.
        """
        async with self.database.connection(ASK_TIMEOUT) as connection:
            await connection.execute(_SWEEP, (timedelta(seconds=MESSAGE_TIME),))
