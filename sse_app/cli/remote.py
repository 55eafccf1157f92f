"""``publish`` and ``listen``: talk to a running server as any client does."""

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

PATIENCE = 10.0
"""Seconds for which ``publish`` tries to reach the server."""


class ExtraMissing(SSEAppError):
    """What a command needs is not installed."""


def publish(options: argparse.Namespace) -> None:
    """Publish one event and print its id."""
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
    async with Publisher(url, token, give_up_after=PATIENCE) as publisher:
        return await publisher.publish(options.channel, options.type, data)


def listen(options: argparse.Namespace) -> None:
    """Print events until Ctrl-C or until the token is of no more use."""
    _require_client(options)
    settings = settings_of(options)
    channels = [name for name in options.channels.split(",") if name]
    token = _token(options, settings, TokenKind.STREAM, Grants.of(subscribe=channels))
    asyncio.run(_listen(options, _url(options, settings), token))


async def _listen(options: argparse.Namespace, url: str, token: Token) -> None:
    from sse_app.client import Stream

    async with Stream(url, options.channels, token, after=options.after, on_state=_say) as stream:
        async for item in stream:
            _print(item)


def _say(state: Connected | Waiting) -> None:
    """Tell people how it stands; what programs read goes to standard output."""
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
    """Say in one line what is missing.

    Raises:
        ExtraMissing: something is.
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
    """Return the token given, else one minted anew whenever one is wanted, all of one session."""
    if options.token_stdin:
        return sys.stdin.readline().strip()
    if given := os.environ.get("SSE_APP_TOKEN"):
        return given
    session = secrets.token_urlsafe(12)
    mint_with_own_keys(settings, kind, "cli", grants, TOKEN_LIFETIME, session)  # what is wrong comes out here

    async def minted() -> str:
        return mint_with_own_keys(settings, kind, "cli", grants, TOKEN_LIFETIME, session)

    return minted
