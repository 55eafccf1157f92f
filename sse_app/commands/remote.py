"""``publish`` and ``listen``: talk to a running server as any client does."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from urllib.parse import quote, urlencode

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from sse_app.auth.grants import Grants
from sse_app.auth.tokens import TokenKind
from sse_app.commands.options import settings_of
from sse_app.commands.tokens import mint_with_own_keys
from sse_app.errors import InvalidInput, SSEAppError
from sse_app.settings import Settings
from sse_app.wire import EventParser, ParsedEvent

TOKEN_LIFETIME = 600
LAST_STATUSES = (204, 400, 401, 403, 404, 405)
"""Statuses after which coming back is of no use."""


class RequestFailed(SSEAppError):
    """A server refused, or could not be reached."""


def _url(options: argparse.Namespace, settings: Settings) -> str:
    url = options.url or os.environ.get("SSE_APP_URL") or f"http://{settings.host}:{settings.port}"
    return str(url).rstrip("/")


def _token(options: argparse.Namespace, settings: Settings, kind: TokenKind, grants: Grants) -> str:
    if options.token_stdin:
        return sys.stdin.readline().strip()
    return os.environ.get("SSE_APP_TOKEN") or mint_with_own_keys(
        settings, kind, "cli", grants, TOKEN_LIFETIME
    )


def publish(options: argparse.Namespace) -> None:
    """Publish one event and print its id."""
    settings = settings_of(options)
    try:
        data = json.loads(sys.stdin.read() if options.data == "-" else options.data)
    except ValueError as error:
        raise InvalidInput(f"the data is not JSON: {error}") from None
    token = _token(options, settings, TokenKind.ACCESS, Grants.of(publish=[options.channel]))
    request = HTTPRequest(
        f"{_url(options, settings)}/api/v1/sse/{quote(options.channel, safe='')}",
        method="POST",
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        body=json.dumps({"event": options.type, "data": data}),
    )
    print(asyncio.run(_post(request)))


async def _post(request: HTTPRequest) -> str:
    try:
        response = await AsyncHTTPClient().fetch(request, raise_error=False)
    except OSError as error:
        raise RequestFailed(f"cannot reach the server: {error}") from None
    answer = _error_text(response.code, response.body)
    if response.code != 201:
        raise RequestFailed(answer)
    return str(json.loads(response.body)["id"])


def listen(options: argparse.Namespace) -> None:
    """Print events until Ctrl-C or until the token is of no more use."""
    settings = settings_of(options)
    channels = [name for name in options.channels.split(",") if name]
    token = _token(options, settings, TokenKind.STREAM, Grants.of(subscribe=channels))
    base = f"{_url(options, settings)}/api/v1/sse/{quote(options.channels, safe=',')}"
    asyncio.run(_listen(base, token, options.after))


async def _listen(base: str, token: str, position: str | None) -> None:
    retry = 3.0
    while True:
        query = {"token": token} | ({"last_event_id": position} if position else {})
        parser = EventParser()
        ended = False

        def received(piece: bytes, parser: EventParser = parser) -> None:
            nonlocal position, retry, ended
            for event in parser.feed(piece):
                position = event.id or position
                ended = _print(event) or ended
            retry = retry if parser.retry is None else parser.retry / 1000

        request = HTTPRequest(
            f"{base}?{urlencode(query)}", streaming_callback=received, request_timeout=0, connect_timeout=10
        )
        try:
            await AsyncHTTPClient(force_instance=True).fetch(request)
        except HTTPClientError as error:
            if error.code in LAST_STATUSES:
                raise RequestFailed(f"the server answered {error.code}") from None
        except OSError:
            pass  # it is away, perhaps only for a moment
        if ended:
            raise RequestFailed("the server has ended the stream for good")
        await asyncio.sleep(retry)


def _print(event: ParsedEvent) -> bool:
    """Print an event as a line; return whether it says that the token is of no more use."""
    try:
        data = json.loads(event.data)
    except ValueError:
        data = event.data
    print(json.dumps({"event": event.type, "id": event.id, "data": data}), flush=True)
    return event.type == "closing" and isinstance(data, dict) and data.get("retry") is None


def _error_text(status: int, body: bytes) -> str:
    try:
        return f"{status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"the server answered {status}"
