"""The interface behind which accounts, sessions, revocations and the audit trail are kept.

Nodes that share a store share all of them. What a request must know at once, above all whether its token is
revoked, is not asked of the store: `sse_app.auth.revocations` learns it from there and answers from memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from sse_app.auth.records import Account, AuditEntry, Continued, Credentials, Revocation, SessionLimits
from sse_app.auth.tokens.grants import Grants
from sse_app.core.errors import SSEAppError

AUDIT_KEPT = 20_000
"""How many entries of each action the audit trail keeps; older ones of it are dropped, and none of another action."""

SESSIONS_KEPT = 1000
"""How many sessions of one subject there are at the most."""

REPEATABLE = 30.0
"""For how many seconds a refresh token that was spent still brings the one that came after it, if that is not used.

A client that was told to wait repeats it in time: `LONGEST_REFRESH`, the end of a query that is given up, and the
``Retry-After`` of the answer come to less.
"""

LONGEST_REFRESH = 15.0
"""For how many seconds at most is waited until a refresh token is spent: clients wait no longer for an answer."""

SPENT_KEPT = 1000
"""How many spent refresh tokens of a session are kept, the last ones: with 60 refreshes an hour, of 16 hours; with the
default lifetime of access tokens, of more than a session's 30 days. An older one is unknown, and ends nothing."""


class RefreshRefused(SSEAppError):
    """A refresh token is unknown, spent or too old; its holder must log in again.

    Args:
        reason: ``unknown``, ``reused``, ``expired`` or ``no account``, for the audit trail.
        session, subject: whose it was, where that is known.
    """

    def __init__(self, reason: str, session: str = "", subject: str = "") -> None:
        super().__init__("the refresh token is not valid: log in again")
        self.reason = reason
        self.session = session
        self.subject = subject


class AuthStore(ABC):
    """Keeps accounts, sessions, revocations and the audit trail, for every process that uses the same store.

    Each method is one transaction: it is done as a whole and survives a crash when the call returns, or nothing
    is done and it raises `AuthStoreUnavailable`, which any of them may. Calls may overlap, in one process and
    in several; those that change the same account, session or refresh token then act as if one came after the
    other. None blocks the event loop for longer than a lookup takes.

    Where a method revokes what an account was issued, that is what was issued until the change is written.
    Times are in seconds since the epoch.
    """

    poll_interval = 0.5
    """Every how many seconds a process asks for revocations."""

    @abstractmethod
    def on_change(self, callback: Callable[[], None]) -> None:
        """Call a function at once when there may be revocations or keys to learn of; it is set before the store opens.

        A store that cannot tell calls nothing: each process asks every `poll_interval` seconds all the same.
        """

    @property
    @abstractmethod
    def available(self) -> bool:
        """Whether the last attempt to use the store succeeded; while it did not, the store tries again now and then."""

    @property
    @abstractmethod
    def id(self) -> str:
        """What tells this store from any other, once it was open: 8 hexadecimal digits, drawn when it was made."""

    @abstractmethod
    async def open(self) -> None:
        """Begin to use the store, which is made, or migrated forward; calls before that raise `AuthStoreUnavailable`.

        Raises:
            StateError: it cannot be used, or was written by a newer version of this program.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun, and release the store: every later call raises `AuthStoreUnavailable`.

        A store that is not open, or closed already, stays as it is.
        """

    # -- accounts -------------------------------------------------------------------------------------------

    @abstractmethod
    async def add_account(self, account: Account, password_hash: str) -> bool:
        """Keep a new account; return False, and change nothing, where the name is taken."""

    @abstractmethod
    async def accounts(self) -> list[Account]:
        """Return all accounts by name."""

    @abstractmethod
    async def accounts_page(self, search: str, offset: int, limit: int) -> tuple[int, list[Account]]:
        """Return how many accounts have a text in their names, in either case, and a page of them, sorted by name.

        Args:
            search: the text; empty for all accounts.
            offset: how many to pass over.
            limit: how many at the most.
        """

    @abstractmethod
    async def credentials(self, name: str) -> Credentials | None:
        """Return an account with the hash of its password, or None."""

    @abstractmethod
    async def set_password(self, name: str, password_hash: str) -> bool:
        """Change a password, end the account's sessions, and revoke its tokens.

        Returns:
            Whether there is such an account.
        """

    @abstractmethod
    async def replace_password_hash(self, name: str, old: str, new: str) -> None:
        """Write the hash of the same password in another way, unless it has changed from ``old`` meanwhile."""

    @abstractmethod
    async def set_grants(self, name: str, grants: Grants) -> bool:
        """Change what an account may do, and revoke its tokens; its sessions stay, and bring fresh ones.

        Returns:
            Whether there is such an account.
        """

    @abstractmethod
    async def disable_account(self, name: str) -> bool:
        """Refuse an account its login, end its sessions, and revoke its tokens.

        Returns:
            Whether there is such an account.
        """

    @abstractmethod
    async def enable_account(self, name: str) -> bool:
        """Allow an account its login again.

        Returns:
            Whether there is such an account.
        """

    @abstractmethod
    async def remove_account(self, name: str) -> bool:
        """Delete an account, end its sessions, and revoke its tokens.

        Returns:
            Whether there was such an account.
        """

    # -- sessions -------------------------------------------------------------------------------------------

    @abstractmethod
    async def begin_session(
        self, session: str, subject: str, digest: bytes, *, since: int, now: float, limits: SessionLimits
    ) -> bool:
        """Keep a new session with its first refresh token; drop all that have run out.

        Of the subject's sessions those that were used last are kept, `SESSIONS_KEPT` at the most.

        Args:
            session: its id, which is new.
            subject: whose it is.
            digest: of the refresh token, which itself is never kept.
            since: the number of a revocation (`last_revocation`); where the subject was revoked by a later one,
                there is no session, and False is returned.
            now: when it begins.
            limits: how long it lasts.
        """

    @abstractmethod
    async def spend_refresh_token(
        self, digest: bytes, next_digest: bytes, seed: bytes, *, now: float, limits: SessionLimits
    ) -> Continued:
        """Spend a refresh token, keep the one that comes after it, and return the session.

        A token that was spent up to `REPEATABLE` seconds ago, by a clock that may have been moved either way,
        gets the same session and seed again, as long as the one after it has not been used: the first
        answer may have been lost, or two tabs have refreshed at once. The time begins anew with each repetition, whose
        answer may be lost too. Any other that comes back ends the session: it was stolen, or the thief was quicker
        (RFC 9700 §4.14.2).

        Args:
            digest: of the token.
            next_digest: of the one that comes after it.
            seed: what that one is made from; kept until it is used, and of no use without the token itself.
            now: the time.
            limits: how long the session lasts.

        Raises:
            RefreshRefused: the token is not known; or it was spent before, its session has run out, or the
                account is disabled or gone, and then the session is ended and its tokens are revoked.
        """

    @abstractmethod
    async def session_of(self, digest: bytes) -> tuple[str, str] | None:
        """Return session and subject of a refresh token, also of one that is spent, or None."""

    @abstractmethod
    async def end_session(self, session: str) -> None:
        """End a session and revoke its tokens, also those of a session that is not kept here."""

    # -- revocations ----------------------------------------------------------------------------------------

    @abstractmethod
    async def revoke(self, revocations: Iterable[Revocation]) -> None:
        """Write revocations, all or none, end the sessions that they speak of, and drop those that are spent.

        A refresh token from before would else bring fresh tokens, which no revocation knows. One of a subject
        or of all tokens is written as of then (`Revocation.as_of`).
        """

    @abstractmethod
    async def last_revocation(self) -> int:
        """Return the number of the last revocation, also where it is spent; 0 where there was none.

        The numbers only grow, whatever the clock does, and those given after a backup was restored are greater than
        those given before: so they tell what was issued before a revocation and what after it.
        """

    @abstractmethod
    async def revocations_since(self, number: int, made_after: float = 0.0) -> list[tuple[int, Revocation]]:
        """Return the revocations with a larger number, in their order; a process asks several times a second.

        None appears with a smaller number than one that was returned before, so that a process which asks with
        the last number it has seen learns of each. Those that are spent may be left out, and so are those
        made before ``made_after`` (seconds since the epoch); but not kicks, which say themselves how long they last.
        """

    # -- the audit trail ------------------------------------------------------------------------------------

    @abstractmethod
    async def append_audit(self, entries: Iterable[AuditEntry]) -> None:
        """Add entries to the audit trail, all or none, and drop the oldest of each action beyond `AUDIT_KEPT`."""

    @abstractmethod
    async def audit_entries(self, limit: int, before: int | None = None) -> list[tuple[int, AuditEntry]]:
        """Return the newest entries with their numbers, newest first.

        Args:
            limit: how many at the most.
            before: only those with a smaller number.
        """
