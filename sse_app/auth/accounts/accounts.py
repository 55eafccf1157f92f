"""The accounts that can log in."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sse_app.auth.accounts.passwords import (
    MAX_PASSWORD_LENGTH,
    PasswordThreads,
    check_password,
    hash_password,
)
from sse_app.auth.records import Account
from sse_app.auth.store import AuthStore
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import require_room
from sse_app.core.channels import own_patterns
from sse_app.core.errors import InvalidInput, NameTaken, UnknownUser
from sse_app.settings.model import Auth

MIN_PASSWORD_LENGTH = 8

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


class Accounts:
    """Reads and changes accounts.

    What takes something away from an account is in force at once, also on open streams: the store ends its
    sessions and revokes its tokens in the same transaction.

    Args:
        store: where they are kept.
        threads: where passwords are hashed.
        auth: which channels are each subject's own.
    """

    def __init__(self, store: AuthStore, threads: PasswordThreads, auth: Auth) -> None:
        self._store = store
        self._threads = threads
        self.use(auth)

    def use(self, auth: Auth) -> None:
        """Take other settings."""
        self._auth = auth

    async def add(self, name: str, password: str, grants: Grants) -> None:
        """Make an account.

        Raises:
            InvalidInput: the name or the password will not do.
            NameTaken: there is such a user.
            TokenTooLarge: the grants do not fit into a token.
        """
        check_new_account(name, password, grants, self._auth)
        hashed = await self._threads.run(lambda: hash_password(password))
        if not await self._store.add_account(Account(name, grants, disabled=False), hashed):
            raise NameTaken(name)

    async def set_password(self, name: str, password: str) -> None:
        """Change a password, and end what the old one began.

        Raises:
            InvalidInput: the password will not do.
            UnknownUser: there is no such user.
        """
        _require_length(password)
        hashed = await self._threads.run(lambda: hash_password(password))
        _require(name, await self._store.set_password(name, hashed))

    async def set_grants(self, name: str, grants: Grants) -> None:
        """Change what an account may do; its sessions stay, and a refresh brings tokens that say so.

        Raises:
            UnknownUser: there is no such user.
            TokenTooLarge: the grants do not fit into a token.
        """
        _require_room(name, grants, self._auth)
        _require(name, await self._store.set_grants(name, grants))

    async def disable(self, name: str) -> None:
        """Refuse an account its login, and end its sessions.

        Raises:
            UnknownUser: there is no such user.
        """
        _require(name, await self._store.disable_account(name))

    async def enable(self, name: str) -> None:
        """Allow an account its login again.

        Raises:
            UnknownUser: there is no such user.
        """
        _require(name, await self._store.enable_account(name))

    async def remove(self, name: str) -> None:
        """Delete an account and end its sessions.

        Raises:
            UnknownUser: there is no such user.
        """
        _require(name, await self._store.remove_account(name))

    async def list(self) -> list[Account]:
        """Return all accounts by name."""
        return await self._store.accounts()

    async def page(self, search: str, offset: int, limit: int) -> tuple[int, Sequence[Account]]:
        """Return how many accounts have a text in their names, and some of them; see `AuthStore.accounts_page`."""
        return await self._store.accounts_page(search, offset, limit)

    async def find(self, name: str) -> Account | None:
        """Return an account, or None."""
        found = await self._store.credentials(name)
        return None if found is None else found.account

    async def authenticate(self, name: str, password: str, network: str) -> Account | None:
        """Return the account if the password is right and it is not disabled.

        An unknown name, a wrong password and a disabled account take the same time. A hash of older
        parameters is replaced.

        Args:
            name, password: what was typed.
            network: where it comes from, which has a fair share of the checks.

        Raises:
            TooManyLogins: too many others are being checked.
        """
        found = await self._store.credentials(name)
        hashed = None if found is None else found.password_hash
        enabled = found is not None and not found.account.disabled
        right, renewed = await self._threads.run(
            lambda: check_password(password, hashed, renew=enabled), network
        )
        if found is None or not enabled or not right:
            return None
        if renewed is not None:
            await self._store.replace_password_hash(name, found.password_hash, renewed)
        return found.account


def check_new_account(name: str, password: str, grants: Grants, auth: Auth) -> None:
    """Look whether an account can be made, but for its name being taken.

    Raises:
        InvalidInput: the name or the password will not do.
        TokenTooLarge: the grants do not fit into a token.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            "a user name is letters, digits and _ . @ -, at most 64, and begins with a letter or digit"
        )
    _require_room(name, grants, auth)
    _require_length(password)


def check_changes(name: str, password: str | None, grants: Grants | None, auth: Auth) -> None:
    """Look whether an account can be given a password and grants, where there are any.

    Raises:
        InvalidInput: the password will not do.
        TokenTooLarge: the grants do not fit into a token.
    """
    if password is not None:
        _require_length(password)
    if grants is not None:
        _require_room(name, grants, auth)


def _require_room(name: str, grants: Grants, auth: Auth) -> None:
    require_room(auth, name, grants.with_subscriptions(own_patterns(auth.own_channels, name)))


def _require_length(password: str) -> None:
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise InvalidInput(f"a password has {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters")


def _require(name: str, known: bool) -> None:
    if not known:
        raise UnknownUser(name)
