"""``publish``, ``listen`` and ``presence``: use a running server over HTTP, through `sse_app.client`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import secrets
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.cli.options import settings_of
from sse_app.cli.tokens import mint_with_own_keys
from sse_app.core.channels import is_internal, with_presence
from sse_app.core.errors import InvalidInput, SSEAppError
from sse_app.settings.model import Settings

if TYPE_CHECKING:
    from sse_app.client import Connected, Event, Reset, Waiting

    Token = str | Callable[[], Awaitable[str]]

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
        InvalidInput: the data is no JSON.
        SSEAppError: the server refused the event, or could not be reached in `PUBLISH_TIMEOUT`.
    """
    _require_client(options)
    settings = settings_of(options)
    data = _data(options)
    token = _token(options, settings, TokenKind.ACCESS, Grants.of(publish=[options.channel]))
    if id := asyncio.run(_publish(options, _url(options, settings), token, data)):
        print(id)
    else:
        print("sse-app: taken; the channel's events are not stored, and have no id", file=sys.stderr)


def _data(options: argparse.Namespace) -> object:
    """Return what is to be published: a JSON value, or a text with each of its characters.

    Raises:
        InvalidInput: it is no JSON, or standard input would have to be two things.
    """
    given: str = options.data
    if given == "-":
        if options.token_stdin:
            raise InvalidInput("standard input has the token or the data, not both")
        given = sys.stdin.buffer.read().decode()  # line breaks as they are
    if options.text:
        return given
    try:
        return json.loads(given)
    except ValueError as error:
        raise InvalidInput(f"the data is not JSON: {error} (--text publishes a text as it is)") from None
    except RecursionError:
        raise InvalidInput("the data is nested too deeply") from None


async def _publish(options: argparse.Namespace, url: str, token: Token, data: object) -> str:
    from sse_app.client import Publisher

    async with Publisher(url, token, patience=PUBLISH_TIMEOUT) as publisher:
        return await publisher.publish(options.channel, options.type, data, final=options.final)


def listen(options: argparse.Namespace) -> None:
    """Print events, a JSON object per line, until Ctrl-C, the end of the channels or of what the token is good for.

    Raises:
        ExtraMissing: the extra ``client`` is not installed.
        InvalidInput: ``--since`` is no time.
    """
    _require_client(options)
    since = None if options.since is None else _since(options.since)
    settings = settings_of(options)
    channels = [name for name in options.channels.split(",") if name]
    seen = [seen for name in channels if (seen := with_presence(name)) is not None]
    others = [name for name in channels if with_presence(name) is None]
    token = None
    if not options.no_token:
        own = any(map(is_internal, others))  # such as the server's figures, which take the admin grant
        token = _token(options, settings, TokenKind.STREAM, Grants.of(others, admin=own, presence=seen))
    asyncio.run(_listen(options, _url(options, settings), token, since))


def presence(options: argparse.Namespace) -> None:
    """Print the users that have streams on a channel, a JSON object per line.

    Raises:
        ExtraMissing: the extra ``client`` is not installed.
        SSEAppError: the server refused it, or could not be reached.
    """
    _require_client(options)
    settings = settings_of(options)
    token = _token(options, settings, TokenKind.ACCESS, Grants.of(presence=[options.channel]))
    from sse_app.client import presence as ask

    there = asyncio.run(ask(_url(options, settings), options.channel, token))
    for user in there.users:
        print(json.dumps({"sub": user.sub, "streams": user.streams, "since": user.since}))
    if not there.users and not there.anonymous:
        print(f"sse-app: no user has a stream on {options.channel}", file=sys.stderr)
    if there.anonymous:
        print(f"sse-app: besides {there.anonymous} without a token", file=sys.stderr)
    if not there.complete:
        print("sse-app: not every node has answered: there may be more", file=sys.stderr)


def _since(text: str) -> datetime | float:
    """Return a time, or seconds ago.

    Raises:
        InvalidInput: the text is neither.
    """
    if match := re.fullmatch(r"-(\d{1,10}(?:\.\d{1,9})?)", text):
        return float(match[1])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidInput("--since takes a time such as 2026-01-31T12:00:00Z, or seconds ago such as -60")
    return moment


async def _listen(
    options: argparse.Namespace, url: str, token: Token | None, since: datetime | float | None
) -> None:
    from sse_app.client import Stream

    async with Stream(
        url,
        options.channels,
        token,
        after=options.after,
        begin=options.begin,
        last=options.last,
        since=since,
        types=options.types,
        rate=options.rate,
        on_state=_report,
    ) as stream:
        async for item in stream:
            _print(item)
    print("sse-app: the channels have ended", file=sys.stderr, flush=True)


def _report(state: Connected | Waiting) -> None:
    """Print the state of the connection to standard error; standard output is for events only."""
    from sse_app.client import Connected

    if isinstance(state, Connected):
        conflated = f" (conflated: {', '.join(state.conflated)})" if state.conflated else ""
        print(f"sse-app: connected to {', '.join(state.channels)}{conflated}", file=sys.stderr, flush=True)
    elif state.attempt:
        print(f"sse-app: {state.reason}; back in {state.delay:.1f} s", file=sys.stderr, flush=True)


def _print(item: Event | Reset) -> None:
    from sse_app.client import Reset

    if isinstance(item, Reset):
        line: dict[str, object] = {
            "event": "reset",
            "id": None,
            "data": {"channel": item.channel, "reason": item.reason},
        }
    else:
        line = {"event": item.type, "id": item.id or None, "data": item.data}
    print(json.dumps(line), flush=True)


def _require_client(options: argparse.Namespace) -> None:
    """Check that the extra ``client`` is installed.

    Raises:
        ExtraMissing: it is not; the text is one line that names the package.
    """
    try:
        import sse_app.client  # noqa: F401
    except ModuleNotFoundError as error:
        raise ExtraMissing(f"{options.run.partition(':')[2]}: {error}") from None


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
