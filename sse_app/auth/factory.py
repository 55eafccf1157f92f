"""Makes the store of auth, and what issues and verifies tokens, from the settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from sse_app.auth.revocations import Revocations
from sse_app.auth.sqlite_store import SqliteAuthStore, id_of_file, make_tables
from sse_app.auth.store import AuthStore
from sse_app.auth.tokens.issuer import Tokens
from sse_app.auth.tokens.keyring import KeyRing, load_keys
from sse_app.auth.tokens.sealed_keys import SealedKeys
from sse_app.core.errors import StateError
from sse_app.settings.model import OIDC, Auth
from sse_app.storage.sqlite import is_missing_or_empty
from sse_app.storage.state_dir import StateDirectory

if TYPE_CHECKING:
    from sse_app.auth.postgres_store import PostgresAuthStore
    from sse_app.auth.tokens.oidc import Provider
    from sse_app.storage.postgres.database import Database

SEAL_WITHOUT_DATABASE = "auth.keys_seal is for keys in PostgreSQL, and event_log names none"
"""Why settings that have the keys sealed are refused on one machine."""


def make_auth_store(state: StateDirectory, database: Database | None = None) -> AuthStore:
    """Return the store of accounts, sessions, revocations and the audit trail, not yet open.

    Args:
        state: holds its file where no database keeps it.
        database: keeps it.
    """
    if database is None:
        return SqliteAuthStore(state.accounts)
    from sse_app.auth.postgres_store import PostgresAuthStore  # it imports psycopg, which takes a while

    return PostgresAuthStore(database)


def require_auth_store(state: StateDirectory, event_log: Path | None, *, anew: bool = False) -> bool:
    """Make the store of auth where there is none yet, and return whether that was done.

    Args:
        state: holds it.
        event_log: the file of the event log, if there is one.
        anew: make it even where it was lost.

    Raises:
        StateError: it was lost, or cannot be made.
    """
    if not is_missing_or_empty(state.accounts):
        return False
    if not anew:
        refuse_lost_accounts(state, event_log)
    make_tables(state.accounts)
    return True


def refuse_lost_accounts(state: StateDirectory, event_log: Path | None) -> None:
    """Refuse a state in which the store of auth must have been lost.

    It is not made anew in silence: no user could log in, and what was revoked would be valid.

    Args:
        state: holds it.
        event_log: the file of the event log, if there is one.

    Raises:
        StateError: it is missing or empty, and there is what a server makes after it.
    """
    there = [state.keys] if state.has_keys_of_a_server() else []
    if event_log is not None:
        there.append(event_log)
    if there and is_missing_or_empty(state.accounts):
        raise StateError(
            f"{state.accounts} is missing or empty, but {there[0]} is there: restore a backup of it, "
            "or make a new one, without the accounts and revocations, with: sse-app user add NAME --init"
        )


def require_known_store(state: StateDirectory, store: AuthStore, database: Database) -> None:
    """Refuse a database whose accounts are not those that this machine has used before, and remember which it uses.

    They are not begun anew in silence: no user could log in, and what was revoked would be valid.

    Args:
        state: remembers it; that of a server on SQLite has used its file.
        store: the accounts in the database, open.
        database: holds it.

    Raises:
        StateError: it is another one, or cannot be remembered.
    """
    anew = cast("PostgresAuthStore", store).anew
    if not is_known_store(state, store) and not anew:
        raise StateError(
            f"the accounts in the database {database.address} are not those that the state directory {state.path} "
            "was used with: name the database that it was used with, restore a backup of it, copy the accounts "
            "there, or begin there without them with: sse-app user add NAME --init"
        )
    if state.store_id != store.id:
        state.store_id = store.id


def is_known_store(state: StateDirectory, store: AuthStore) -> bool:
    """Return whether a state directory was used with a store before, or with none yet.

    Raises:
        StateError: that cannot be found out.
    """
    known = state.store_id
    if not known and not is_missing_or_empty(state.accounts):
        known = id_of_file(state.accounts)
    return known in ("", store.id)


def sealed_keys_of(auth: Auth, store: AuthStore) -> SealedKeys | None:
    """Return the keys in the database, or None where they are in files.

    Raises:
        StateError: the settings want them in a database, and there is none.
    """
    if not auth.keys_seal:
        return None
    if isinstance(store, SqliteAuthStore):
        raise StateError(SEAL_WITHOUT_DATABASE)
    return SealedKeys(cast("PostgresAuthStore", store), Path(auth.keys_seal))


def keys_directory(auth: Auth, state: StateDirectory) -> Path:
    """Return the directory of the keys: the one that the settings name, else one in the state directory.

    Raises:
        StateError: the settings name one that is not there.
    """
    if not auth.keys_dir:
        return state.keys
    try:
        there = Path(auth.keys_dir).is_dir()
    except OSError as error:
        raise StateError(f"cannot use the keys in {auth.keys_dir}: {error.strerror}") from None
    if not there:
        raise StateError(f"there is no directory {auth.keys_dir} (auth.keys_dir): make it, with mode 0700")
    return Path(auth.keys_dir)


def issuer_of(
    auth: Auth, state: StateDirectory, revocations: Revocations | None = None, *, create: bool = True
) -> Tokens:
    """Return the token issuer of a state directory.

    Args:
        auth: names the issuer and the audience, and perhaps the keys' directory.
        state: where the keys are otherwise.
        revocations: what is refused; None where tokens are only issued.
        create: whether to make the first key where there is none.

    Raises:
        StateError: the keys cannot be read or made.
    """
    return issuer_with(load_keys(keys_directory(auth, state), create=create), auth, revocations)


def issuer_with(keys: KeyRing, auth: Auth, revocations: Revocations | None = None) -> Tokens:
    """Return the issuer of tokens of some keys.

    Args:
        keys: the keys.
        auth: names the issuer and the audience.
        revocations: what is refused; None where tokens are only issued.
    """
    return Tokens(
        keys,
        issuer=auth.issuer,
        audience=auth.audience,
        longest=auth.longest_lifetime,
        revocations=revocations,
    )


def provider_of(oidc: OIDC, auth: Auth) -> Provider | None:
    """Return the OpenID provider whose tokens are accepted, or None where the settings name none."""
    if not oidc.issuer:
        return None
    from sse_app.auth.tokens.oidc import Provider  # it imports PyJWT, which would slow every restart down

    return Provider(oidc, auth.longest_lifetime)
