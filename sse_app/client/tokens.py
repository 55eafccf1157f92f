"""Where tokens come from: a text, a function, or a session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sse_app.client.session import Session

Token = str | Callable[[], Awaitable[str]] | Session
"""A token: one for good, a function that fetches a fresh one, or the session that hands them out."""

StreamToken = Token | None
"""As `Token`; None for public channels, which take none."""


class StreamTokens:
    """Stream tokens for the channels of a stream.

    Args:
        token: where they come from.
        channels: which channels.
    """

    def __init__(self, token: StreamToken, channels: tuple[str, ...]) -> None:
        self._token = token
        self._channels = channels

    @property
    def fresh(self) -> bool:
        """Whether the next one will be another than the last."""
        return not isinstance(self._token, str | None)

    async def get(self) -> str | None:
        """Return a token, a fresh one where there is one; None where the stream takes none.

        Raises:
            ClientError: the session can get none. A function raises what it raises.
        """
        match self._token:
            case str() | None as token:
                return token
            case Session() as session:
                return await session.stream_token(self._channels)
            case fetch:
                return await fetch()


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
            ClientError: the session can get none. A function raises what it raises.
        """
        match self._token:
            case str(token):
                return token
            case Session() as session:
                return await session.access_token(refused)
            case fetch:
                return await fetch()
