"""``doctor``: looks for what stands in the way of a server here, or of its streams behind a proxy; a line for each."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sse_app.auth.tokens.claims import new_id
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.cli.findings import FAILURE, OK, TIMEOUT, WARNING, Line
from sse_app.cli.options import settings_of
from sse_app.cli.proxy_check import Address, try_proxy
from sse_app.cli.tokens import mint_with_own_keys
from sse_app.core.errors import InvalidInput, SSEAppError
from sse_app.settings.channels import doubts
from sse_app.settings.loader import find_settings_file
from sse_app.settings.model import Settings
from sse_app.settings.workers import worker_count
from sse_app.storage.ownership import require_own
from sse_app.storage.state_dir import StateDirectory, has_state

LITTLE_ROOM = 256 * 1024 * 1024
"""Bytes; a file system of the state with less free space is warned of."""

TOKEN_LIFETIME = 60
"""How many seconds the tokens are valid with which streams are tried."""


def doctor(options: argparse.Namespace) -> int:
    """Print a line for each thing that was looked at; return 1 where one of them is a failure.

    Raises:
        SettingsError: a setting has a bad value.
        InvalidInput: the URL is none, or there is no token on standard input.
    """
    settings = settings_of(options)
    if options.url is not None:
        address = Address.of(options.url)
        given = _given_token(options)
    failed = False
    for line in _here(settings, options):
        failed |= line.level == FAILURE
        _print(line)
    if options.url is not None:
        tokens = None if given else _own_tokens(settings)
        for line in try_proxy(address, settings, given, tokens):
            failed |= line.level == FAILURE
            _print(line)
    return int(failed)


def _print(line: Line) -> None:
    # What a server has answered may be meant to do harm to a terminal.
    text = "".join(sign if sign.isprintable() else " " for sign in line.text)
    print(f"{line.level:<8} {text}", flush=True)


def _here(settings: Settings, options: argparse.Namespace) -> Iterator[Line]:
    """Look at this machine: what a start needs, and whether a server that runs is ready."""
    from sse_app.process.dry_run import try_start

    yield Line(
        OK, f"settings: {find_settings_file(getattr(options, 'config', None)) or 'no file, the defaults'}"
    )
    good, bad = try_start(settings)
    yield from (
        Line(WARNING if ": warning: " in line else OK, line.replace("warning: ", "")) for line in good
    )
    yield from (Line(WARNING, f"settings: {line}") for line in doubts(settings))
    yield from (Line(FAILURE, line) for line in bad)
    yield from _room(settings.state_dir)
    process = _running(settings.state_dir)
    yield _open_files(settings, process)
    if process is not None:
        yield _readiness(settings)


def _room(state_dir: Path) -> Iterator[Line]:
    """Write to the state directory, where there is one, as a server would; leaves nothing there."""
    if not has_state(state_dir):
        return
    path = state_dir.absolute()
    try:
        require_own(state_dir, "the state directory")
        with tempfile.NamedTemporaryFile(dir=state_dir, prefix=".doctor-") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except SSEAppError:
        return  # the dry run has told it
    except OSError as error:
        yield Line(
            FAILURE,
            f"disk: cannot write in {path}: {error.strerror}: make room there, or have it mounted for writing",
        )
        return
    there = os.statvfs(state_dir)
    free = there.f_bavail * there.f_frsize
    if free < LITTLE_ROOM:
        yield Line(WARNING, f"disk: {free >> 20} MB are free below {path}: make room before the log needs it")
    else:
        yield Line(OK, f"disk: {path} can be written, {free >> 20} MB are free")


def _running(state_dir: Path) -> int | None:
    """Return the process of a server that uses the state directory: its own, or one of its workers."""
    if not has_state(state_dir):
        return None
    with suppress(SSEAppError, OSError):
        state = StateDirectory(state_dir, create=False, change=False)
        workers = state.running_workers()
        return next(iter(workers.values()), None) or state.holder()
    return None


def _open_files(settings: Settings, process: int | None) -> Line:
    """Compare how many files may be open with how many streams the settings let in."""
    from sse_app.node import RESERVED_FILES  # only here: it loads the whole server

    whose = "this shell and what it starts" if process is None else f"the server (process {process})"
    try:
        files, hard = resource.prlimit(process or 0, resource.RLIMIT_NOFILE)
    except OSError:
        return Line(WARNING, f"open files: cannot read the limit of {whose}: run this as its user")
    if process is None:
        files = hard  # as a server that is started here raises its own
    streams = settings.limits.streams
    if files == resource.RLIM_INFINITY or files >= streams + RESERVED_FILES:
        return Line(OK, f"open files: {whose} may have {files}, enough for limits.streams = {streams}")
    room = max(1, files - RESERVED_FILES)
    each = " in each worker" if worker_count(settings) > 1 else ""
    return Line(
        WARNING,
        f"open files: {whose} may have {files}, so no more than {room} streams are let in{each} and not "
        f"limits.streams = {streams}: raise it with LimitNOFILE= in the unit, or ulimit -n",
    )


def _readiness(settings: Settings) -> Line:
    """Ask the server that runs here whether it is ready."""
    everywhere = {"::": "::1", "0.0.0.0": "127.0.0.1"}
    host = everywhere.get(settings.host, settings.host)
    asked = f"server: {host}:{settings.port}"
    connection = http.client.HTTPConnection(host, settings.port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        text = answer.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return Line(FAILURE, f"{asked} does not answer ({error or type(error).__name__}): its log says why")
    finally:
        connection.close()
    if answer.status == 200:
        return Line(OK, f"{asked} is ready")
    return Line(FAILURE, f"{asked} is not ready: {text.strip()}")


def _given_token(options: argparse.Namespace) -> str:
    """Return the stream token that the caller gave; empty where it gave none."""
    if not options.token_stdin:
        return os.environ.get("SSE_APP_TOKEN", "")
    if not (token := sys.stdin.readline().strip()):
        raise InvalidInput("there is no token on standard input")
    return token


def _own_tokens(settings: Settings) -> tuple[str, str] | str:
    """Return an access token and a stream token for the live figures, or why there is none.

    The server sends the figures once a second to each stream that asks for them, and stores none: nothing is published.
    """
    session = new_id()

    async def mint(kind: TokenKind) -> str:
        grants = Grants.of(admin=True)
        return await mint_with_own_keys(settings, kind, "doctor", grants, TOKEN_LIFETIME, session)

    try:
        return asyncio.run(mint(TokenKind.ACCESS)), asyncio.run(mint(TokenKind.STREAM))
    except SSEAppError as error:
        return str(error)
