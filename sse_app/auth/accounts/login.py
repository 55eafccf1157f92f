"""Login: from a name and a password to a session and its tokens, and on to its refreshes and its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from sse_app.auth.accounts.accounts import Accounts
from sse_app.auth.accounts.sessions import Session, Sessions
from sse_app.auth.accounts.throttle import LoginThrottle
from sse_app.auth.audit import Audit
from sse_app.auth.records import Account
from sse_app.auth.store import RefreshRefused
from sse_app.auth.tokens.claims import Claims, issued_after, new_id
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import LEAST_LIFETIME, MAX_URL_LENGTH, TokenKind, Tokens, jittered
from sse_app.core.addresses import network_of
from sse_app.core.channel_rules import ChannelRules
from sse_app.core.channels import ChannelName, own_patterns
from sse_app.core.errors import SSEAppError, TokenRefused, TokenTooLarge
from sse_app.core.rate_limit import RateLimit
from sse_app.settings.model import Auth

UNKNOWN_REFRESHES = 50.0
"""How many refresh tokens that are not known an address may try a second before it has to wait, over all nodes."""

MAX_WAITING_TURNS = 64
"""How many logins from one address may wait until others from there have been checked."""

SHARING_PREFIX = 48
"""How many bits of an IPv6 address name the network that has one fair share of the password checks: what a site gets
(RFC 6177), who can have any address below it."""


class LoginThrottled(SSEAppError):
    """There were too many wrong passwords or unknown refresh tokens, or too many are still being checked.

    Args:
        wait: seconds until the next try.
    """

    def __init__(self, wait: float) -> None:
        super().__init__("too many attempts: wait before the next one")
        self.wait = wait


class LoggedIn(NamedTuple):
    """What a login or a refresh gives: the session, and its tokens with their lifetimes in seconds."""

    session: Session
    grants: Grants
    access_token: str
    access_lifetime: int
    stream_token: str
    stream_lifetime: int


class Login:
    """Checks passwords and refresh tokens, and issues tokens to a client that has the right one.

    Args:
        accounts: that can log in.
        sessions: begun by a login.
        tokens: the issuer.
        audit: records logins, refreshes and logouts.
        auth: how long tokens last, and which channels are each subject's own.
        nodes: returns how many nodes share the limit on unknown refresh tokens just now.
    """

    def __init__(
        self,
        accounts: Accounts,
        sessions: Sessions,
        tokens: Tokens,
        audit: Audit,
        auth: Auth,
        nodes: Callable[[], int] = lambda: 1,
    ) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._tokens = tokens
        self._audit = audit
        self._auth = auth
        self.throttle = LoginThrottle()
        self._unknown_refreshes = RateLimit(UNKNOWN_REFRESHES, nodes)
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        """By address: logins that wait until others from there have been checked."""

    def use(self, auth: Auth) -> None:
        """Take other settings."""
        self._auth = auth

    async def log_in(self, name: str, password: str, address: str) -> LoggedIn | None:
        """Return a new session, or None where name and password do not fit, without telling which.

        Raises:
            LoginThrottled: there were too many wrong ones.
            TooManyLogins: too many others are being checked.
            TokenTooLarge: what the account may do fits into no token.
        """
        async with self._turn(name, address):
            since = await self._sessions.last_revocation()
            network = network_of(address, SHARING_PREFIX)
            account = await self._accounts.authenticate(name, password, network)
            session = None
            if account is not None:
                session = await self._sessions.open(account.name, since)
            if account is None or session is None:
                self.throttle.failed(name, address, time.monotonic())
            else:
                self.throttle.succeeded(name, address, time.monotonic())
        if account is None or session is None:
            known = await self._accounts.find(name)
            # What is no account's name may be a password, typed into the wrong field: it is not kept.
            target, detail = (name, "") if known else ("", "unknown user")
            self._audit.record(
                "login_refused", address=address, target=target, detail=detail, level=logging.WARNING
            )
            return None
        try:
            logged_in = self._logged_in(session, account)
        except TokenTooLarge:
            self._audit.record("login_refused", address=address, target=name, detail="token too large")
            await self._sessions.end(session.id)
            raise
        self._audit.record("login", subject=account.name, address=address, target=session.id)
        return logged_in

    @asynccontextmanager
    async def _turn(self, name: str, address: str) -> AsyncIterator[None]:
        """Wait until a password may be checked: not while those that are checked may use up the free tries.

        Raises:
            LoginThrottled: the free tries are used up; or very many wait already.
        """
        throttle = self.throttle
        network = network_of(address)
        while True:
            now = time.monotonic()
            if wait := throttle.wait(name, address, now):
                raise LoginThrottled(wait)
            if throttle.has_room(name, address, now):
                break
            waiting = self._waiting.setdefault(network, [])
            if len(waiting) >= MAX_WAITING_TURNS:
                raise LoginThrottled(1.0)
            turn = asyncio.get_running_loop().create_future()
            waiting.append(turn)
            await turn
        throttle.begin(name, address)
        try:
            yield
        finally:
            throttle.end(name, address)
            for turn in self._waiting.pop(network, ()):
                if not turn.done():
                    turn.set_result(None)

    async def refresh(self, token: str, address: str) -> LoggedIn:
        """Continue a session with fresh tokens and the grants of today.

        Raises:
            RefreshRefused: the refresh token is no good; one that was spent before has ended its session.
            LoginThrottled: it is not known, and many from this address were not; one that is known is not refused.
        """
        if await self._sessions.find(token) is None:  # which is only a look, and no write
            self._audit.count("refresh_refused", "unknown refresh tokens")
            if wait := self._unknown_refreshes.take(network_of(address), 1, time.monotonic()):
                raise LoginThrottled(wait)
            raise RefreshRefused("unknown")
        try:
            session, account = await self._sessions.refresh(token)
        except RefreshRefused as error:
            reused = error.reason == "reused"
            self._audit.record(
                "refresh_reused" if reused else "refresh_refused",
                subject=error.subject,
                address=address,
                target=error.session,
                detail=error.reason,
                level=logging.WARNING if reused else logging.INFO,
            )
            raise
        self.throttle.remember(account.name, address, time.monotonic())
        self._audit.record("refresh", subject=account.name, address=address, target=session.id)
        return self._logged_in(session, account)

    async def log_out(self, session: str, subject: str, address: str) -> None:
        """End a session and its tokens; its streams end as soon as the revocation is applied."""
        await self._sessions.end(session)
        self._audit.record("logout", subject=subject, address=address, target=session)

    async def session_of(self, refresh_token: str) -> tuple[str, str] | None:
        """Return session and subject of a refresh token, or None."""
        return await self._sessions.find(refresh_token)

    def _logged_in(self, session: Session, account: Account) -> LoggedIn:
        grants = account.grants.with_subscriptions(own_patterns(self._auth.own_channels, account.name))

        def issue(kind: TokenKind, grants: Grants, lifetime: int) -> tuple[str, int]:
            expires_at = self._tokens.expiry(jittered(lifetime), session.at)
            token = self._tokens.issue_until(
                kind, account.name, session.id, grants, expires_at, as_of=session.at, after=session.after
            )
            # A token is good for at least a second when it is issued; of that a moment has passed by now.
            return token, max(int(LEAST_LIFETIME), self._tokens.remaining(expires_at))

        return LoggedIn(
            session,
            grants,
            *issue(TokenKind.ACCESS, grants, self._auth.access_lifetime),
            *issue(TokenKind.STREAM, grants.only_subscribing(), self._auth.stream_lifetime),
        )

    def stream_token(self, claims: Claims, channels: Sequence[str] | None) -> tuple[str, int]:
        """Return a stream token for the channels (None: all) of an access token, and its lifetime in seconds.

        It does not outlive the access token, and counts as issued when that was: what revokes the one
        revokes the other. The caller has checked that the channels are granted.

        Raises:
            TokenRefused: the access token is about to expire, and a token that can be used would outlive it.
            TokenTooLarge: the channels are too many to stand in a URL together with their token.
        """
        tokens = self._tokens
        expires_at = min(
            tokens.expiry(jittered(self._auth.stream_lifetime), claims.issued_at), int(claims.expires_at)
        )
        lifetime = tokens.remaining(expires_at)
        if lifetime < LEAST_LIFETIME:
            raise TokenRefused("the token is about to expire", "expires within a second")
        grants = claims.grants.only_subscribing(channels)
        token = tokens.issue_until(
            TokenKind.STREAM,
            claims.subject,
            claims.session,
            grants,
            expires_at,
            as_of=claims.issued_at,
            after=issued_after(claims.token_id),
        )
        if len(token) + sum(len(name) + 1 for name in channels or ()) > MAX_URL_LENGTH:
            raise TokenTooLarge(
                f"the names of the channels and their token are longer than the {MAX_URL_LENGTH} characters that "
                "a URL has room for: open several streams, or name no channels"
            )
        return token, lifetime

    def stream_token_for(self, subject: str, subscribe: Iterable[str], lifetime: float) -> str:
        """Return a stream token for a subject that needs no account here.

        Raises:
            InvalidChannel: one of the patterns is none.
        """
        session = new_id()
        return self._tokens.issue(TokenKind.STREAM, subject, session, Grants.of(subscribe), lifetime)


def names_granted(configured: ChannelRules, grants: Grants) -> list[ChannelName]:
    """Return the configured channel names that the grants allow to subscribe to, and those that are public."""
    return [name for name in configured.names if grants.subscribe.matches(name) or configured.is_public(name)]
