"""Where tokens come from: a text, a function, or a session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from inspect import isawaitable
from typing import Protocol, TypeVar

from sse_app.client.errors import Forbidden, StreamEnded, Unauthorized, Unavailable, kicked_or
from sse_app.client.http import meaning_of
from sse_app.core.redaction import redact


class AccessTokenSource(Protocol):
    """What has access tokens, such as a `Session`."""

    def access_token(self, refused: str | None = None, /) -> Awaitable[str]:
        """Return one, another than the one that the server has refused, if any."""


class StreamTokenSource(Protocol):
    """What has stream tokens, such as a `Session`."""

    def stream_token(self, channels: Iterable[str] | None = None, /) -> Awaitable[str]:
        """Return a fresh one that is good for these channels."""


Token = str | Callable[[], Awaitable[str]] | AccessTokenSource
"""An access token: one for good, a function that fetches a fresh one, or the session that hands them out."""

StreamToken = str | Callable[[], Awaitable[str]] | StreamTokenSource | None
"""As `Token`, a stream token; None for public channels, which take none."""


class StreamTokens:
    """Stream tokens for the channels of a stream.

    Args:
        token: where they come from.
        channels: which channels.

    Attributes:
        refused: whether the server has refused one since a stream was open; the next one is then the last.
    """

    def __init__(self, token: StreamToken, channels: tuple[str, ...]) -> None:
        self._token = None if token is None else _checked(token, "stream_token")
        self._channels = channels
        self.refused = False

    @property
    def fresh(self) -> bool:
        """Whether the next one will be another than the last."""
        return not isinstance(self._token, str | None)

    async def get(self) -> str | None:
        """Return a token, a fresh one where there is one; None where the stream takes none.

        Raises:
            StreamEnded: an administrator has kicked the session.
            Unauthorized, Forbidden: there is no token to be had, for good.
            Unavailable: there is none just now, for any other reason.
        """
        token = self._token
        if isinstance(token, str | None):
            return None if token is None else _sendable(token)
        try:
            return _sendable(
                await _awaited(token() if callable(token) else token.stream_token(self._channels))
            )
        except Exception as error:  # of any kind: the caller's own function may raise anything
            meaning = meaning_of(error)
            if isinstance(meaning, Forbidden):
                meaning = kicked_or(meaning)
            if not isinstance(meaning, StreamEnded | Unauthorized | Forbidden | Unavailable):
                why = meaning or redact(f"{type(error).__name__}: {error}")
                meaning = Unavailable(f"there is no token: {why}")
            if meaning is error:
                raise
            raise meaning from error


class AccessTokens:
    """Access tokens for a publisher.

    Args:
        token: where they come from.
    """

    def __init__(self, token: Token) -> None:
        self._token = _checked(token, "access_token")

    @property
    def fresh(self) -> bool:
        """Whether there is another when one is refused."""
        return not isinstance(self._token, str)

    async def get(self, refused: str | None = None) -> str:
        """Return a token, another than the one that the server has refused, if any.

        Raises:
            ClientError: the session can get none, or the function can not, as its exception's HTTP status says. Any
                other exception of a function is raised as it is.
        """
        token = self._token
        if isinstance(token, str):
            return _sendable(token)
        try:
            return _sendable(await _awaited(token() if callable(token) else token.access_token(refused)))
        except Exception as error:
            meaning = meaning_of(error)
            if meaning is None or meaning is error:
                raise
            raise meaning from error


Given = TypeVar("Given", Token, StreamToken)


def _checked(token: Given, method: str) -> Given:
    """Return a token that is one.

    Raises:
        TypeError: it is neither a text nor a function nor has it the method that fetches one.
    """
    if isinstance(token, str) or callable(token) or hasattr(token, method):
        return token
    raise TypeError(f"token must be a text, a function or a Session, not {type(token).__name__}")


async def _awaited(token: Awaitable[str] | str) -> str:
    """Return what a function has returned: a plain one a text."""
    return await token if isawaitable(token) else token


def _sendable(token: str) -> str:
    """Return a token without what is around it, such as the line's end of the file that it was read from.

    Raises:
        TypeError: it is no text.
        Unauthorized: no header can carry it.
    """
    if not isinstance(token, str):
        raise TypeError(f"the token function returned no text, but {type(token).__name__}")
    if not (token := token.strip()).isprintable():
        raise Unauthorized("the token has characters that no header can carry", 401, "invalid_token")
    return token
