"""A client that publishes over HTTP: logs in, retries through restarts, and never doubles an event.

Everything that is sent carries an idempotency key made once. When the answer is lost the same bytes go out
again under the same key, and the server answers as it did the first time.
"""

import asyncio
import json
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import httpx

from .events import Event

LOGIN = "/api/v1/auth/login"
PUBLISH = "/api/v1/sse"

LONGEST_RETRY_AFTER = 60.0
"""Seconds; a server that asks for more is asked again after this."""

RENEWALS = 3
"""Logins for one request before its 401 is taken as final."""


class PublishError(Exception):
    """The server will not take this, now or later; the message says what it answered."""


class LoginRefused(PublishError):
    """The account does not exist, is disabled, or the password is wrong."""


class PublishClient:
    """Publishes events as one account.

    A connection that fails, 429 and 5xx are retried for as long as it takes; 401 leads to a new login.
    Several tasks may share a client. Cancel the call to give up.

    Args:
        url: the server's address, as in `http://127.0.0.1:8000`.
        user: the account, which needs the publish grant for the channels.
        password: its password.
        report: takes a sentence when the server is lost, and when it is back.
        first_delay: seconds before the first retry at most; doubles from one to the next.
        longest_delay: seconds between retries at most.
    """

    def __init__(
        self,
        url: str,
        user: str,
        password: str,
        *,
        report: Callable[[str], None] = lambda sentence: None,
        first_delay: float = 0.25,
        longest_delay: float = 5.0,
    ) -> None:
        self._user, self._password = user, password
        self._report = report
        self._first_delay, self._longest_delay = first_delay, longest_delay
        self._access_token = ""
        self._login_lock = asyncio.Lock()
        self._lost = False
        # No proxy from the environment: it would be asked for an address on this machine.
        timeout = httpx.Timeout(15.0, connect=5.0)
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.aclose()

    async def publish(self, event: Event) -> str:
        """Publish one event and return its id. It is in the server's log by then.

        Raises:
            PublishError: the server refuses the event or the account.
        """
        body = {"event": event["event"], "data": event["data"]}
        answer = await self._publish(f"{PUBLISH}/{event['channel']}", body)
        return str(answer["id"])

    async def publish_batch(self, events: Sequence[Event]) -> list[str]:
        """Publish events of any channels, all or none of them, in this order; return their ids.

        Raises:
            PublishError: as `publish`.
        """
        answer = await self._publish(PUBLISH, {"events": list(events)})
        return [str(event_id) for event_id in answer["ids"]]

    async def login(self) -> None:
        """Get a new access token.

        Raises:
            LoginRefused: the server does not know the account by this password.
        """
        body = {"username": self._user, "password": self._password, "cookie": False}
        response = await self._post(LOGIN, _encode(body), {})
        if response.status_code != 200:
            raise LoginRefused(f"login as {self._user}: {_describe(response)}")
        token = _object(response).get("access_token")
        if not isinstance(token, str) or not token:
            raise LoginRefused(f"login as {self._user}: no access token in the answer")
        self._access_token = token

    async def _publish(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        # Encoded once: a key stands for these bytes, and the server refuses it with any others.
        content, key = _encode(body), str(uuid.uuid4())
        for _ in range(RENEWALS + 1):
            token = self._access_token
            if token:
                headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key}
                response = await self._post(path, content, headers)
                if response.status_code == 201:
                    return _object(response)
                if response.status_code != 401:
                    raise PublishError(f"{path}: {_describe(response)}")
            async with self._login_lock:
                # Of the tasks that meet an expired token together only the first logs in.
                if token == self._access_token:
                    await self.login()
        raise PublishError(f"{path}: {_describe(response)}")

    async def _post(self, path: str, content: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """Send until there is an answer that a repeat would not change."""
        headers = {"Content-Type": "application/json", **headers}
        longest = self._first_delay
        while True:
            # The whole span is random, so that many clients do not return to a restarted server in step.
            delay = random.uniform(0.0, longest)
            try:
                response = await self._http.post(path, content=content, headers=headers)
            except httpx.TransportError as error:
                self._trouble(f"{type(error).__name__} {error}".strip())
            else:
                if response.status_code != 429 and response.status_code < 500:
                    if self._lost:
                        self._lost = False
                        self._report("the server is back")
                    return response
                self._trouble(_describe(response))
                delay += _retry_after(response)
            await asyncio.sleep(delay)
            longest = min(2.0 * longest, self._longest_delay)

    def _trouble(self, reason: str) -> None:
        if not self._lost:
            self._lost = True
            self._report(f"{reason}; trying again until it works")


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()


def _object(response: httpx.Response) -> dict[str, Any]:
    """The JSON object in a response."""
    try:
        value = response.json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise PublishError(f"{response.request.url.path}: the answer is no JSON object: another server?")
    return value


def _describe(response: httpx.Response) -> str:
    """Status and the server's own words, where it has any."""
    try:
        error = response.json()["error"]
        return f"{response.status_code} {error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason_phrase}"


def _retry_after(response: httpx.Response) -> float:
    """The seconds the server asks to wait; 0 where it does not say, or says it as a date."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), LONGEST_RETRY_AFTER) if text.isascii() and text.isdigit() else 0.0
