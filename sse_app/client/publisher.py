"""Publishing over HTTP: retries through restarts, and never doubles an event.

What is sent carries an idempotency key made once. When the answer is lost the same bytes go out again under
the same key, and the server answers as it did the first time.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from sse_app.client.backoff import Backoff
from sse_app.client.errors import ProtocolError, Unavailable
from sse_app.client.http import HTTPUser, failure, json_object, lost, timeouts
from sse_app.client.tokens import AccessTokens, Token

PUBLISH = "/api/v1/sse"

PATIENCE = 60.0
"""Seconds for which a publisher tries where the caller has not said for how long."""

KEY_LIFETIME = 23 * 3600.0
"""Seconds for which a key is relied on; the server keeps it for a day, and after that would publish again."""

PUBLISHER_BACKOFF = Backoff(first=0.25, most=5.0)


class Publisher(HTTPUser):
    """Publishes events. Several tasks may share it.

    No answer, 429 and 5xx are retried, after ``Retry-After`` at the soonest; a refused token is replaced by a
    fresh one, once. Events that tasks publish side by side may arrive in any order; those of one task, one
    awaited after the other, arrive in that order. Once a call has given up, or is cancelled, it is not known whether
    the event was published, unless the call is repeated under the same ``key``.

    Args:
        url: the server's address.
        token: an access token with the publish grant, an async function that returns one, or a `Session`.
        http: the HTTP client to use, None for its own.
        backoff: how long to wait between attempts.
        timeout: seconds to wait for an answer before the request is sent again.
        patience: seconds for which a call tries, all attempts and waits together; at most 23 hours, for as long as the
            server is sure to know the key.
        report: called with a sentence when the server cannot be reached, and when it can again.

    Raises:
        ValueError: the address is none; the patience is not above 0.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        http: httpx.AsyncClient | None = None,
        backoff: Backoff = PUBLISHER_BACKOFF,
        timeout: float = 15.0,
        patience: float = PATIENCE,
        report: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        super().__init__(url, http)
        self._tokens = AccessTokens(token)
        self._backoff = backoff
        self._timeout = timeouts(timeout)
        if not patience > 0:
            raise ValueError("patience must be above 0 seconds")
        self._patience = min(patience, KEY_LIFETIME)
        self._report = report
        self._lost = False

    async def publish(
        self,
        channel: str,
        event: str,
        data: Any,
        *,
        retry: int | None = None,
        final: bool = False,
        key: str | None = None,
    ) -> str:
        """Publish one event and return its id. By then it is in the server's log, on disk.

        Where the channel's events are not stored it has none, and "" is returned once the server has taken it.

        Args:
            channel: where to.
            event: the event type.
            data: any JSON value; a text is sent as it is.
            retry: a new reconnection time for clients, in milliseconds.
            final: whether it is the channel's last event, with which streams on this channel alone end.
            key: the idempotency key, 1 to 255 visible ASCII characters, to be given where a call is repeated,
                as after a crash of this process; None makes one.

        Raises:
            Refused: the server will not take it; `Unauthorized` and `Forbidden` are such.
            Unavailable: ``patience`` has passed; it may have been published or not.
            ClientError: something else is wrong; see `sse_app.client.errors`.
            ValueError, TypeError: the data cannot be written as JSON.
        """
        body: dict[str, Any] = {"event": event, "data": data}
        if retry is not None:
            body["retry"] = retry
        if final:
            body["final"] = True
        answer = await self._send(f"{PUBLISH}/{quote(channel, safe='')}", body, key)
        if "id" not in answer and answer.get("channel") == channel:
            return ""
        return _id(answer.get("id"))

    async def publish_batch(
        self, events: Sequence[Mapping[str, Any]], *, key: str | None = None
    ) -> list[str]:
        """Publish events of any channels, all or none of them, in this order; return their ids.

        Args:
            events: each ``{"channel", "event", "data"[, "retry"][, "final"]}``; the server sets how many
                (1,000). The id of one that is not stored is "".
            key: as in `publish`.

        Raises:
            As `publish` does.
        """
        answer = await self._send(PUBLISH, {"events": list(events)}, key)
        ids = answer.get("ids")
        if not isinstance(ids, list) or len(ids) != len(events):
            raise ProtocolError("the answer does not name the events: it is another server's")
        return ["" if id is None else _id(id) for id in ids]

    async def _send(self, path: str, body: Mapping[str, Any], key: str | None) -> dict[str, Any]:
        # Encoded once: a key stands for these bytes, and the server refuses it with any others.
        content = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": key or str(uuid.uuid4())}
        give_up_at = _clock() + self._patience
        attempt = 0
        while True:
            try:
                async with asyncio.timeout(give_up_at - _clock()):
                    answer = await self._attempt(f"{self.url}{path}", content, headers)
            except TimeoutError:
                raise Unavailable(f"the server has not answered within {self._patience:g} s") from None
            except Unavailable as error:
                delay = error.retry_after + self._backoff.delay(attempt)
                attempt += 1
                if _clock() + delay >= give_up_at:
                    raise
                self._trouble(str(error))
                await asyncio.sleep(delay)
                if _clock() >= give_up_at:  # this machine may have slept
                    raise
            else:
                if self._lost:
                    self._lost = False
                    self._report("the server is back")
                return answer

    async def _attempt(self, url: str, content: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        """Send once, and where the token is refused once more with a fresh one.

        Raises:
            Unavailable: it may work later.
            ClientError: it will not.
        """
        try:
            token = await self._tokens.get()
            answer = await self._post(url, content, headers, token)
            if answer.status_code == 401 and self._tokens.fresh:
                answer = await self._post(url, content, headers, await self._tokens.get(refused=token))
        except (httpx.RequestError, OSError) as error:
            raise lost(error) from error
        if answer.status_code not in (201, 202):
            raise failure(answer)
        return json_object(answer.content)

    async def _post(self, url: str, content: bytes, headers: Mapping[str, str], token: str) -> httpx.Response:
        return await self._http.post(
            url,
            content=content,
            headers={**headers, "Authorization": f"Bearer {token}"},
            timeout=self._timeout,
        )

    def _trouble(self, reason: str) -> None:
        if not self._lost:
            self._lost = True
            self._report(f"{reason}; trying again")


def _clock() -> float:
    """Return seconds on a clock that cannot be set, and that also runs while a machine sleeps where there is one."""
    boottime: int | None = getattr(time, "CLOCK_BOOTTIME", None)  # Linux only
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def _id(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ProtocolError("the answer has no id: it is another server's")
    return value
