"""``token``: mints a token with the keys of the state directory, or of the database."""

from __future__ import annotations

import argparse
import asyncio

from sse_app.auth.factory import issuer_of, issuer_with, make_auth_store
from sse_app.auth.tokens.claims import Mark, new_id
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.cli.auth_store import in_database, keys_in_use
from sse_app.cli.options import grants_of, settings_of, warn_of_uncovered
from sse_app.core.channels import own_patterns
from sse_app.core.errors import AuthStoreUnavailable, InvalidInput, StateError
from sse_app.settings.database import make_database
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import StateDirectory


def mint(options: argparse.Namespace) -> None:
    """Print a token, and nothing else.

    Raises:
        InvalidInput: the flags contradict each other or are out of bounds.
    """
    grants = grants_of(options)
    kind = TokenKind.ACCESS if options.kind == "access" else TokenKind.STREAM
    if kind is TokenKind.STREAM and (grants.publish.texts or grants.admin):
        raise InvalidInput("a stream token can only subscribe: --publish and --admin need --kind access")
    if options.ttl < 1:
        raise InvalidInput("--ttl must be at least 1 second")
    settings = settings_of(options)
    if options.ttl > settings.auth.longest_lifetime:
        longest = settings.auth.longest_lifetime
        raise InvalidInput(f"--ttl must be at most {longest} seconds (auth.longest_lifetime)")
    if not options.subject:
        raise InvalidInput("--subject must not be empty")
    warn_of_uncovered(grants, settings)
    if kind is TokenKind.ACCESS:
        grants = grants.with_subscriptions(own_patterns(settings.auth.own_channels, options.subject))
    minted = mint_with_own_keys(settings, kind, options.subject, grants, options.ttl, options.session)
    print(asyncio.run(minted))


async def mint_with_own_keys(
    settings: Settings, kind: TokenKind, subject: str, grants: Grants, ttl: float, session: str | None = None
) -> str:
    """Return a token signed with the server's keys.

    Raises:
        StateError, AuthStoreUnavailable: they cannot be read.
    """
    auth = settings.auth
    if (database := make_database(settings)) is None:
        state = StateDirectory(settings.state_dir, create=False)
        tokens = issuer_of(auth, state, create=False)
        after = await _last_revocation(state)
    else:
        async with in_database(database, settings) as store:
            tokens = issuer_with(await keys_in_use(settings, store), auth)
            after = Mark(await store.last_revocation(), store.id)
    return tokens.issue(kind, subject, session or new_id(), grants, ttl, after=after)


async def _last_revocation(state: StateDirectory) -> Mark | None:
    """Return the last revocation; None where there is no store, or none that can be read.

    The token is then told from those that were revoked by its issuing time alone.
    """
    if not state.accounts.exists():
        return None
    store = make_auth_store(state)
    try:
        await store.open()
        return Mark(await store.last_revocation(), store.id)
    except (StateError, AuthStoreUnavailable):
        return None
    finally:
        await store.close()
