"""Tokens and accounts, made in this process as the commands make them, in a hundredth of the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from sse_app.auth.accounts.accounts import check_new_account
from sse_app.auth.accounts.passwords import hash_password
from sse_app.auth.factory import make_auth_store
from sse_app.auth.records import Account
from sse_app.auth.tokens.claims import new_id
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind, Tokens
from sse_app.auth.tokens.keyring import KeyRing
from sse_app.core.channels import own_patterns
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import StateDirectory

EVERYTHING = Grants.of(subscribe=["**"], publish=["**"], admin=True)


def mint(
    state_dir: Path,
    kind: TokenKind,
    grants: Grants,
    *,
    subject: str = "tester",
    session: str = "",
    ttl: float = 600,
) -> str:
    """Return a token signed with the newest key of a state directory, as ``sse-app token`` prints it."""
    auth = Settings().auth
    tokens = Tokens(
        KeyRing.load(state_dir / "keys", create=False),
        issuer=auth.issuer,
        audience=auth.audience,
        longest=max(ttl, auth.longest_lifetime),
    )
    if kind is TokenKind.ACCESS:
        grants = grants.with_subscriptions(own_patterns(auth.own_channels, subject))
    expires_at = int(time.time()) + int(ttl)  # also in the past
    return tokens.issue_until(kind, subject, session or new_id(), grants, expires_at)


def split(channels: str | Iterable[str]) -> list[str]:
    """Return channels or patterns as the command takes them, with commas, one by one."""
    return [part for part in channels.split(",") if part] if isinstance(channels, str) else list(channels)


def add_account(state_dir: Path, name: str, password: str, grants: Grants) -> None:
    """Make an account, as ``sse-app user add`` does."""
    with ThreadPoolExecutor(1) as thread:  # the caller's own may have an event loop that runs
        thread.submit(asyncio.run, _add_account(state_dir, name, password, grants)).result()


async def _add_account(state_dir: Path, name: str, password: str, grants: Grants) -> None:
    check_new_account(name, password, grants, Settings().auth)
    store = make_auth_store(StateDirectory(state_dir))
    await store.open()
    try:
        assert await store.add_account(Account(name, grants, disabled=False), _hash_of(password)), name
    finally:
        await store.close()


@cache
def _hash_of(password: str) -> str:
    """Return the hash of a password, made once: most tests use the same one."""
    return hash_password(password)
