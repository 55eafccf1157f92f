"""A login at the server, which returns access tokens and stream tokens and renews them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import httpx

from sse_app.client.errors import ProtocolError, Refused, Unavailable
from sse_app.client.http import HTTPUser, failure, json_object, lost, timeouts

AUTH = "/api/v1/auth"

SPENT = 0.75
"""The part of an access token's life after which another is fetched: stream tokens do not outlive it."""


class Session(HTTPUser):
    """One account at one server. It logs in when a token is first wanted; several tasks may share it.

    Args:
        url: the server's address.
        user: the account.
        password: its password, kept to log in again when the refresh token is of no more use.
        http: the HTTP client to use, None for its own.
        timeout: seconds that the server may take for an answer.

    Raises:
        ValueError: the address is none.
    """

    def __init__(
        self,
        url: str,
        user: str,
        password: str,
        *,
        http: httpx.AsyncClient | None = None,
        timeout: float = 15.0,
    ) -> None:
        super().__init__(url, http)
        self.user = user
        self._password = password
        self._timeout = timeouts(timeout)
        self._lock = asyncio.Lock()
        self._access = ""
        self._spent_at = 0.0
        self._refresh: str | None = None

    def __repr__(self) -> str:
        return f"Session({self.url!r}, {self.user!r})"

    async def access_token(self, refused: str | None = None) -> str:
        """Return an access token that is good for some time yet.

        Args:
            refused: one that the server no longer takes; it is not returned again.

        Raises:
            Unauthorized: the server does not know the account by this password.
            Unavailable: the server is away, or asks to wait for a while.
            ClientError: it answers something else; see `sse_app.client.errors`.
        """
        if not self._usable(refused):
            async with self._lock:  # of the tasks that meet a spent token together only the first renews it
                if not self._usable(refused):
                    await self._renew()
        return self._access

    async def stream_token(self, channels: Iterable[str] | None = None) -> str:
        """Return a fresh stream token.

        Args:
            channels: those it is good for; None for all that the account may listen to.

        Raises:
            Forbidden: the account may not listen to one of them.
            ClientError: as `access_token`.
        """
        body = {} if channels is None else {"channels": list(channels)}
        token = await self.access_token()
        answer = await self._post("/stream-token", body, token)
        if answer.status_code == 401:
            answer = await self._post("/stream-token", body, await self.access_token(refused=token))
        if answer.status_code != 200:
            raise failure(answer)
        return _text(json_object(answer.content), "stream_token")

    async def logout(self) -> None:
        """End the login at the server, where that can be reached and knows how; forget its tokens in any case.

        It waits for a renewal that is under way.

        Raises:
            ClientError: the server could not be told.
        """
        async with self._lock:  # a renewal under way would bring it fresh tokens
            access, refresh = self._access, self._refresh
            self._access, self._refresh = "", None
            if not access and refresh is None:
                return
            # The refresh token names the session also where there is no access token any more.
            body, token = ({}, access) if refresh is None else ({"refresh_token": refresh}, None)
            answer = await self._post("/logout", body, token)
        if answer.status_code >= 300 and answer.status_code != 401:
            raise failure(answer)

    def _usable(self, refused: str | None) -> bool:
        now = asyncio.get_running_loop().time()
        return bool(self._access) and self._access != refused and now < self._spent_at

    async def _renew(self) -> None:
        """Get another access token by the refresh token, or where that is of no use by the password."""
        self._access = ""
        # It works once: the server takes a later second use for theft, and ends the session. So it is forgotten before
        # it is sent: when the answer is lost, or this task is cancelled, it may have been used or not.
        refresh, self._refresh = self._refresh, None
        if refresh is not None:
            try:
                answer = await self._post("/refresh", {"refresh_token": refresh})
            except Unavailable as error:
                if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                    self._refresh = refresh  # it was never sent
                raise
            if answer.status_code == 200:
                self._take(answer)
                return
            if isinstance(refusal := failure(answer), Unavailable):
                self._refresh = refresh
                raise refusal
        body = {"username": self.user, "password": self._password, "cookie": False}
        answer = await self._post("/login", body)
        if answer.status_code != 200:
            refusal = failure(answer)
            if isinstance(refusal, Refused):
                raise type(refusal)(f"login as {self.user}: {refusal}", refusal.status, refusal.code)
            raise refusal
        self._take(answer)

    def _take(self, answer: httpx.Response) -> None:
        value = json_object(answer.content)
        seconds = value.get("expires_in")
        if not isinstance(seconds, int | float):
            raise ProtocolError("the answer has no expires_in: it is another server's")
        access, refresh = _text(value, "access_token"), value.get("refresh_token")
        self._spent_at = asyncio.get_running_loop().time() + SPENT * seconds
        self._access = access
        self._refresh = refresh if isinstance(refresh, str) and refresh else None

    async def _post(self, path: str, body: dict[str, Any], access: str | None = None) -> httpx.Response:
        headers = {} if access is None else {"Authorization": f"Bearer {access}"}
        try:
            return await self._http.post(
                f"{self.url}{AUTH}{path}", json=body, headers=headers, timeout=self._timeout
            )
        except httpx.RequestError as error:
            raise lost(error) from error


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not text:
        raise ProtocolError(f"the answer has no {name}: it is another server's")
    return text
