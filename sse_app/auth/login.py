"""Login: from a name and a password to tokens."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from sse_app.auth.accounts import Accounts
from sse_app.auth.grants import Grants
from sse_app.auth.passwords import PasswordThreads
from sse_app.auth.tokens import Claims, TokenKind, Tokens
from sse_app.channels import ChannelName, ChannelPatterns, own_patterns


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long tokens are valid, in seconds."""

    access: float
    stream: float


@dataclass(frozen=True, slots=True)
class Session:
    """What a login gives: who it is, and the tokens."""

    subject: str
    id: str
    grants: Grants
    access_token: str
    stream_token: str


class Login:
    """Checks passwords and issues tokens for those who have the right one.

    Args:
        accounts: who can log in.
        threads: where passwords are hashed.
        tokens: the issuer.
        lifetimes: of the tokens.
        own_channels: templates of the channels that are everybody's own, such as ``user.{sub}.**``.
    """

    def __init__(
        self,
        accounts: Accounts,
        threads: PasswordThreads,
        tokens: Tokens,
        lifetimes: Lifetimes,
        own_channels: Iterable[str],
    ) -> None:
        self._accounts = accounts
        self._threads = threads
        self._tokens = tokens
        self._own_channels = tuple(own_channels)
        self.lifetimes = lifetimes

    async def log_in(self, name: str, password: str) -> Session | None:
        """Return a new session, or None where name and password do not fit, without telling which.

        Raises:
            TooManyLogins: too many others are being checked.
        """
        account = await self._threads.run(lambda: self._accounts.authenticate(name, password))
        if account is None:
            return None
        session = secrets.token_urlsafe(12)
        grants = account.grants.with_subscriptions(own_patterns(self._own_channels, account.name))
        return Session(
            account.name,
            session,
            grants,
            self._tokens.issue(TokenKind.ACCESS, account.name, session, grants, self.lifetimes.access),
            self._stream_token(account.name, session, grants.only_subscribing(), self.lifetimes.stream),
        )

    def stream_token(
        self, claims: Claims, channels: Iterable[ChannelName] | None, now: float
    ) -> tuple[str, int]:
        """Return a stream token for the channels (None: all) of an access token, and its lifetime in seconds.

        It does not outlive the access token. The caller has checked that the channels are granted.
        """
        lifetime = int(min(self.lifetimes.stream, claims.expires_at - now))
        grants = claims.grants.only_subscribing(channels)
        return self._stream_token(claims.subject, claims.session, grants, lifetime), lifetime

    def stream_token_for(self, subject: str, subscribe: Iterable[str], lifetime: float) -> str:
        """Return a stream token for somebody without an account here.

        Raises:
            InvalidChannel: one of the patterns is none.
        """
        return self._stream_token(subject, secrets.token_urlsafe(12), Grants.of(subscribe), lifetime)

    def _stream_token(self, subject: str, session: str, grants: Grants, lifetime: float) -> str:
        return self._tokens.issue(TokenKind.STREAM, subject, session, grants, lifetime)


def names_granted(configured: ChannelPatterns, grants: Grants) -> list[ChannelName]:
    """Return the configured channel names that the grants allow to subscribe to."""
    return [name for name in configured.names if grants.subscribe.matches(name)]
