"""One connection to PostgreSQL, for a command: without a pool, and without a limit on how long a statement takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection

from sse_app.core.errors import StateError
from sse_app.storage.postgres.database import address_of, text_of, with_defaults


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncConnection[Any]]:
    """Connect with autocommit, and close the connection at the end.

    Args:
        url: as libpq takes it.

    Raises:
        StateError: that cannot be done, or a statement fails within; the text is one line without a password.
    """
    try:
        # No prepared statements: behind a pooler the next transaction may have another session.
        connection = await AsyncConnection.connect(
            with_defaults(url), autocommit=True, prepare_threshold=None
        )
        try:
            yield connection
        finally:
            await connection.close()
    except psycopg.Error as error:
        raise StateError(f"cannot use the database {address_of(url)}: {text_of(error)}") from None
