"""Who is on a channel: what the server answers to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from sse_app.client.errors import ProtocolError
from sse_app.client.http import HTTPUser, failure, json_object, lost, timeouts
from sse_app.client.tokens import AccessTokens, Token

ANSWER_TIMEOUT = 15.0
"""Seconds that the server may take for an answer."""


@dataclass(frozen=True, slots=True)
class User:
    """A user with streams on a channel.

    Attributes:
        sub: the subject of the user's tokens.
        streams: how many of the user's streams carry the channel.
        since: when the first of them was opened (RFC 3339).
    """

    sub: str
    streams: int
    since: str


@dataclass(frozen=True, slots=True)
class Presence:
    """Who is on a channel.

    Attributes:
        count: how many users.
        users: who they are.
        anonymous: how many streams there are besides that were opened without a token, as public channels allow.
        complete: whether every node of the server has answered; else there may be more.
    """

    count: int
    users: tuple[User, ...]
    anonymous: int
    complete: bool


class _Asker(HTTPUser):
    async def ask(self, channel: str, access: str) -> httpx.Response:
        """Return the answer.

        Raises:
            ClientError: there is none.
        """
        try:
            return await self._http.get(
                f"{self.url}/api/v1/sse/{quote(channel, safe='')}/presence",
                headers={"Authorization": f"Bearer {access}"},
                timeout=timeouts(ANSWER_TIMEOUT),
            )
        except (httpx.RequestError, OSError) as error:
            raise lost(error) from error


async def presence(
    url: str, channel: str, token: Token, *, http: httpx.AsyncClient | None = None
) -> Presence:
    """Return who is on a channel just now.

    To know it from then on, first open a stream on ``sse_app.presence.{channel}``, then ask, and let each ``join`` and
    ``leave`` change the answer; ask again whenever the stream has connected anew, and where it yields a `Reset`.

    Args:
        url: the server's address.
        channel: which one.
        token: an access token with a grant for presence, an async function that returns one, or a `Session`.
        http: the HTTP client to use, None for its own.

    Raises:
        Forbidden: the token does not grant it.
        NotFound: there is no such channel.
        ClientError: something else is wrong, or the server is away; see `sse_app.client.errors`.
        ValueError: the address is none.
    """
    tokens = AccessTokens(token)
    async with _Asker(url, http) as asker:
        access = await tokens.get()
        answer = await asker.ask(channel, access)
        if answer.status_code == 401 and tokens.fresh:
            answer = await asker.ask(channel, await tokens.get(refused=access))
    if answer.status_code != 200:
        raise failure(answer)
    return _presence(json_object(answer.content))


def _presence(value: dict[str, Any]) -> Presence:
    try:
        users = [User(str(user["sub"]), int(user["streams"]), str(user["since"])) for user in value["users"]]
        return Presence(int(value["count"]), tuple(users), int(value["anonymous"]), bool(value["complete"]))
    except (KeyError, TypeError, ValueError):
        raise ProtocolError("the answer does not say who is there: it is another server's") from None
