"""Makes the connections to PostgreSQL that the settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sse_app.core.errors import StateError
from sse_app.settings.model import Settings
from sse_app.settings.types import POSTGRES_SCHEMES

if TYPE_CHECKING:
    from sse_app.storage.postgres.database import Database


def calls_out(settings: Settings) -> bool:
    """Return whether the server opens connections of its own: to an OpenID provider, or to PostgreSQL."""
    return bool(settings.oidc.issuer) or settings.event_log.startswith(POSTGRES_SCHEMES)


def make_database(settings: Settings) -> Database | None:
    """Return the database that the log, accounts and nodes are kept in, not yet open; None where files keep them.

    Raises:
        StateError: what is needed for it is not installed, or its URL cannot be used.
    """
    if not settings.event_log.startswith(POSTGRES_SCHEMES):
        return None
    try:
        from sse_app.storage.postgres.database import Database  # only here: it takes a while to load
    except ImportError as error:
        raise StateError(
            f"event_log names PostgreSQL, and {error.name} is not installed: sse_app[postgres]"
        ) from None
    postgres = settings.postgres
    return Database(
        settings.event_log,
        connections=postgres.connections,
        timeout=postgres.timeout,
        listen_url=postgres.listen_url,
    )
