"""``publish`` and ``listen``: use a running server over HTTP, through `sse_app.client`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
from typing import TYPE_CHECKING

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.cli.options import settings_of
from sse_app.cli.tokens import mint_with_own_keys
from sse_app.core.errors import InvalidInput, SSEAppError
from sse_app.settings.model import Settings

if TYPE_CHECKING:
    from sse_app.client import Connected, Event, Reset, Waiting
    from sse_app.client.tokens import Token

TOKEN_LIFETIME = 600
"""How many seconds a token that a command mints for itself is valid."""

PUBLISH_TIMEOUT = 10.0
"""How many seconds ``publish`` tries to reach the server."""


class ExtraMissing(SSEAppError):
    """A command needs packages that are not installed."""


def publish(options: argparse.Namespace) -> None:
    """Publish one event and print its id.

    Raises:
        ExtraMissing: the extra ``client`` is not installed.
        InvalidInput: the data is not a JSON object.
        SSEAppError: the server refused the event, or could not be reached in `PUBLISH_TIMEOUT`.
    """
    _require_client(options)
    settings = settings_of(options)
    try:
        data = json.loads(sys.stdin.read() if options.data == "-" else options.data)
    except ValueError as error:
        raise InvalidInput(f"the data is not JSON: {error}") from None
    token = _token(options, settings, TokenKind.ACCESS, Grants.of(publish=[options.channel]))
    print(asyncio.run(_publish(options, _url(options, settings), token, data)))


async def _publish(options: argparse.Namespace, url: str, token: Token, data: object) -> str:
    from sse_app.client import Publisher

    if not isinstance(data, dict):
        raise InvalidInput("data must be a JSON object")
    async with Publisher(url, token, give_up_after=PUBLISH_TIMEOUT) as publisher:
        return await publisher.publish(options.channel, options.type, data)


def listen(options: argparse.Namespace) -> None:
    """Print events, a JSON object per line, until Ctrl-C or until the server refuses the token.

    Raises:
        ExtraMissing: the extra ``client`` is not installed.
    """
    _require_client(options)
    settings = settings_of(options)
    channels = [name for name in options.channels.split(",") if name]
    token = _token(options, settings, TokenKind.STREAM, Grants.of(subscribe=channels))
    asyncio.run(_listen(options, _url(options, settings), token))


async def _listen(options: argparse.Namespace, url: str, token: Token) -> None:
    from sse_app.client import Stream

    async with Stream(url, options.channels, token, after=options.after, on_state=_report) as stream:
        async for item in stream:
            _print(item)


def _report(state: Connected | Waiting) -> None:
    """Print the state of the connection to standard error; standard output is for events only."""
    from sse_app.client import Connected

    if isinstance(state, Connected):
        print(f"sse-app: connected to {', '.join(state.channels)}", file=sys.stderr, flush=True)
    elif state.attempt:
        print(f"sse-app: {state.reason}; back in {state.delay:.1f} s", file=sys.stderr, flush=True)


def _print(item: Event | Reset) -> None:
    from sse_app.client import Reset

    if isinstance(item, Reset):
        line = {"event": "reset", "id": None, "data": {"channel": item.channel, "reason": item.reason}}
    else:
        line = {"event": item.type, "id": item.id, "data": item.data}
    print(json.dumps(line), flush=True)


def _require_client(options: argparse.Namespace) -> None:
    """Check that the extra ``client`` is installed.

    Raises:
        ExtraMissing: it is not; the text is one line that names the package.
    """
    try:
        import sse_app.client  # noqa: F401
    except ModuleNotFoundError as error:
        command = options.run.partition(":")[2]
        needs = f"{command} needs the extra 'client': pip install 'sse-app[client]'"
        raise ExtraMissing(f"{needs} ({error})") from None


def _url(options: argparse.Namespace, settings: Settings) -> str:
    url = options.url or os.environ.get("SSE_APP_URL")
    if url is None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        return f"http://{host}:{settings.port}"
    from sse_app.client.http import check_address

    try:
        check_address(url)
    except ValueError as error:
        raise InvalidInput(f"--url or SSE_APP_URL: {error}") from None
    return str(url)


def _token(options: argparse.Namespace, settings: Settings, kind: TokenKind, grants: Grants) -> Token:
    """Return the token that the caller gave, else a function that mints one per call, all of one session."""
    if options.token_stdin:
        if not (token := sys.stdin.readline().strip()):
            raise InvalidInput("there is no token on standard input")
        return token
    if given := os.environ.get("SSE_APP_TOKEN"):
        return given
    session = secrets.token_urlsafe(12)
    # An unusable key is reported now, not at the first connection.
    asyncio.run(mint_with_own_keys(settings, kind, "cli", grants, TOKEN_LIFETIME, session))

    async def minted() -> str:
        return await mint_with_own_keys(settings, kind, "cli", grants, TOKEN_LIFETIME, session)

    return minted
