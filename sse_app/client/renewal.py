"""Renews a stream in place: a fresh token takes over before the old one expires, and the connection stays."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import httpx

from sse_app.client.backoff import Backoff
from sse_app.client.errors import ClientError, Unavailable
from sse_app.client.http import json_object, retry_after, timeouts
from sse_app.client.tokens import StreamTokens

EARLIEST, LATEST = 0.6, 0.75
"""The part of a token's life after which it is renewed; the rest is for attempts that fail."""

SHORTEST = 0.5
"""The least time between two renewals, in seconds, however short the tokens are."""

TIMEOUT = 10.0
"""Seconds that the server may take to answer."""

BACKOFF = Backoff(first=0.5, most=10.0)


async def renew(
    http: httpx.AsyncClient,
    url: str,
    tokens: StreamTokens,
    expires_in: float,
    drop: Callable[[str], None],
    fail: Callable[[ClientError], None],
) -> None:
    """Renew the stream at an address before each expiry, until it can be no more, or for ever.

    What cannot be renewed is dropped, to be opened anew with a fresh token. What passes is tried again until the
    expiry, at which the server ends the stream.

    Args:
        http: the HTTP client.
        url: where the server takes the renewal.
        tokens: where fresh ones come from.
        expires_in: seconds until the first expiry.
        drop: ends the connection, for another one to follow; it takes the reason.
        fail: is called with the error where there is no token, and ends the stream for good.
    """
    clock = asyncio.get_running_loop().time
    while True:
        expires_at = clock() + expires_in
        await asyncio.sleep(max(SHORTEST, expires_in * random.uniform(EARLIEST, LATEST)))
        attempt = 0
        while True:
            try:
                token = await tokens.get()
                answer = await http.post(
                    url, headers={"Authorization": f"Bearer {token}"}, timeout=timeouts(TIMEOUT)
                )
            except Unavailable as error:
                wait = error.retry_after
            except ClientError as error:
                fail(error)
                return
            except (httpx.RequestError, OSError):
                wait = 0.0
            else:
                if answer.status_code == 200:
                    break
                if answer.status_code in (403, 404):
                    drop("the stream could not be renewed")
                    return
                wait = retry_after(answer.headers)
            wait += BACKOFF.delay(attempt)
            attempt += 1
            if clock() + wait >= expires_at:
                return
            await asyncio.sleep(wait)
        try:
            expires_in = float(json_object(answer.content)["expires_in"])
        except (ClientError, KeyError, TypeError, ValueError):
            return
