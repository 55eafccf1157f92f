"""Where tokens come from: a text, a function, or a session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sse_app.client.errors import Forbidden, StreamEnded, Unauthorized, Unavailable, kicked_or
from sse_app.client.http import meaning_of
from sse_app.client.session import Session
from sse_app.core.redaction import redact

Token = str | Callable[[], Awaitable[str]] | Session
"""A token: one for good, a function that fetches a fresh one, or the session that hands them out."""

StreamToken = Token | None
"""As `Token`; None for public channels, which take none."""


class StreamTokens:
    """Stream tokens for the channels of a stream.

    Args:
        token: where they come from.
        channels: which channels.

    Attributes:
        refused: whether the server has refused one since a stream was open; the next one is then the last.
    """

    def __init__(self, token: StreamToken, channels: tuple[str, ...]) -> None:
        self._token = token
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
        try:
            match self._token:
                case str() | None as token:
                    return token
                case Session() as session:
                    return await session.stream_token(self._channels)
                case fetch:
                    return await fetch()
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
        self._token = token

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
        match self._token:
            case str(token):
                return token
            case Session() as session:
                return await session.access_token(refused)
            case fetch:
                try:
                    return await fetch()
                except Exception as error:
                    meaning = meaning_of(error)
                    if meaning is None or meaning is error:
                        raise
                    raise meaning from error
