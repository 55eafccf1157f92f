"""The demo in one command: the server, the publisher, and a banner that says how to look at them.

Usage: python -m examples.market, from the checkout. SSE_APP_HOST, SSE_APP_PORT (0 for any free one) and
SSE_APP_STATE_DIR say where; by default its state is in var/demo, apart from that of a server in this checkout.
The server also reads SSE_APP_WORKERS and all other settings.
Ends on Ctrl-C; when one of the two processes dies the other is ended too.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx

from sse_app.core.errors import SSEAppError

from .children import Child
from .publisher import PASSWORD_VARIABLE
from .state import StateInUse, check, take

ROOT = Path(__file__).resolve().parents[2]
CHANNELS = ("dashboard", "alerts", "training", "backtest")
QUOTES = {"pattern": "quotes", "conflate": "symbol", "history_size": 100}
"""A table of latest values: who is slow gets the newest quote of each symbol, and a page opens with all of them."""

VIEWER, PUBLISHER, ADMIN = "demo", "market", "admin"

READY = 30.0
"""Seconds the server has to become ready."""

SERVER_END, PUBLISHER_END = 10.0, 3.0
"""Seconds the processes have to end in before they are killed."""

POLL = 0.1
"""Seconds between two looks at the processes."""


class DemoError(Exception):
    """The demo has to end; the message says why."""


class Stopped(Exception):
    """A signal has asked the demo to end."""


class Stop:
    """Whether a signal has asked for the end.

    A plain flag, looked at between two steps: a handler that raises could do so in the middle of one, and one
    that sets a `threading.Event` can meet its lock taken by the very thread it interrupts.
    """

    def __init__(self) -> None:
        self.asked = False

    def catch_signals(self) -> None:
        """Take the signals over, also where the shell has started this process with SIGINT ignored."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


@dataclass(frozen=True, slots=True)
class Place:
    """Where the demo runs: the address to listen on, that to connect to, and the state directory."""

    host: str
    port: int
    state: Path

    @property
    def url(self) -> str:
        """The address for clients on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class StreamToken:
    """A token for the curl line, and the seconds it is good for."""

    token: str
    seconds: int


def main() -> None:
    """Run the demo until a signal ends it (`Stopped`) or it breaks (`DemoError`)."""
    stop = Stop()
    stop.catch_signals()
    state = Path(os.environ.get("SSE_APP_STATE_DIR") or ROOT / "var/demo").absolute()
    check(state)
    place = _place(state)
    lock = take(state, place.url)
    environment = {
        **os.environ,
        "SSE_APP_HOST": place.host,
        "SSE_APP_PORT": str(place.port),
        "SSE_APP_STATE_DIR": str(place.state),
        "SSE_APP_DEMO": "true",
        "PYTHONUNBUFFERED": "1",
    }
    quoted = "SSE_APP_CHANNELS" not in environment
    environment.setdefault("SSE_APP_CHANNELS", json.dumps([*CHANNELS, "user.**", QUOTES]))
    passwords = {name: secrets.token_urlsafe(12) for name in (VIEWER, PUBLISHER, ADMIN)}
    channels = ",".join([*CHANNELS, *(["quotes"] if quoted else [])])
    _account(VIEWER, ["--subscribe", channels], passwords[VIEWER], environment, stop)
    _account(PUBLISHER, ["--publish", channels], passwords[PUBLISHER], environment, stop)
    everything = ["--subscribe", channels, "--publish", channels, "--admin"]
    _account(ADMIN, everything, passwords[ADMIN], environment, stop)

    children: list[Child] = []

    def start(name: str, command: list[str], extra: dict[str, str], log: str) -> None:
        children.append(Child(name, [sys.executable, *command], environment | extra, place.state / log, ROOT))

    try:
        start("server", ["main.py", "serve"], {}, "demo.log")
        _wait_until_ready(place, children, stop)
        publisher = ["-m", "examples.market.publisher", "--url", place.url, "--user", PUBLISHER]
        if quoted:
            publisher.append("--quotes")
        start("publisher", publisher, {PASSWORD_VARIABLE: passwords[PUBLISHER]}, "demo-publisher.log")
        _say(_banner(place, passwords, _stream_token(place, passwords[VIEWER])))
        while True:
            _watch(children, stop)
    finally:
        # The publisher first, so that its last words still find a server.
        for child in reversed(children):
            child.end(SERVER_END if child.name == "server" else PUBLISHER_END)
        os.close(lock)


def _place(state: Path) -> Place:
    """Read the settings from the environment and see that the port is free."""
    host = os.environ.get("SSE_APP_HOST", "127.0.0.1")
    text = os.environ.get("SSE_APP_PORT", "8000")
    if "://" in text:  # as Kubernetes and Docker set it for a service of that name
        text = "8000"
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise DemoError(f"SSE_APP_PORT: {text!r} is not a port")
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host or None, int(text), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            # As the server does: connections of one that has just ended do not keep the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            port = int(probe.getsockname()[1])
    except OSError as error:
        raise DemoError(f"cannot listen on {host}:{text}: {error.strerror}") from None
    return Place(host, port, state)


def _account(name: str, grants: list[str], password: str, environment: dict[str, str], stop: Stop) -> None:
    """Make the account, or give the one that an earlier run made a new password, and what it may do now."""
    add = _user(["add", name, "--init", *grants, "--password-stdin"], password, environment)
    if add.returncode != 0:
        _user(["grants", name, *grants], password, environment)
        passwd = _user(["passwd", name, "--password-stdin"], password, environment)
        if passwd.returncode != 0 and not stop.asked:
            raise DemoError(f"cannot make the account {name}:\n{add.stdout.strip()}\n{passwd.stdout.strip()}")
    if stop.asked:
        raise Stopped


def _user(
    arguments: list[str], password: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "main.py", "user", *arguments],
        cwd=ROOT,
        env=environment,
        input=f"{password}\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def _watch(children: list[Child], stop: Stop) -> None:
    """Wait a moment; raise if the end is asked for or a process has died."""
    time.sleep(POLL)
    if stop.asked:
        raise Stopped
    for child in children:
        if child.dead:
            raise DemoError(child.obituary())


def _wait_until_ready(place: Place, children: list[Child], stop: Stop) -> None:
    deadline = time.monotonic() + READY
    reason = ""
    while time.monotonic() < deadline:
        _watch(children, stop)
        try:
            response = httpx.get(f"{place.url}/readyz", timeout=2.0, trust_env=False)
        except httpx.TransportError as error:
            reason = str(error)
            continue
        if response.status_code == 200:
            return
        reason = f"/readyz answers {response.status_code}"
    raise DemoError(f"not ready after {READY:.0f} seconds ({reason}): {children[0].obituary()}")


def _stream_token(place: Place, password: str) -> StreamToken:
    """Log in as the viewer and get a token for the dashboard alone, if the server narrows tokens."""
    with httpx.Client(base_url=f"{place.url}/api/v1/auth", timeout=10.0, trust_env=False) as http:
        body = {"username": VIEWER, "password": password, "cookie": False}
        login = http.post("/login", json=body)
        if login.status_code != 200:
            raise DemoError(f"login as {VIEWER} failed: {login.status_code} {login.text}")
        granted = login.json()
        narrowed = http.post(
            "/stream-token",
            json={"channels": ["dashboard"]},
            headers={"Authorization": f"Bearer {granted['access_token']}"},
        )
        if narrowed.status_code == 200:
            granted |= narrowed.json()
    return StreamToken(granted["stream_token"], int(granted["stream_expires_in"]))


def _banner(place: Place, passwords: dict[str, str], stream: StreamToken) -> str:
    line = "-" * 78
    return f"""{line}
  The market demo is running.

  Page      {place.url}/
  User      {VIEWER}
  Password  {passwords[VIEWER]}   (made for this run, as is the next)

  Admin     {place.url}/admin
  as        {ADMIN}
  with      {passwords[ADMIN]}

  A stream in the terminal, good for {_span(stream.seconds)}:

curl -N "{place.url}/api/v1/sse/dashboard?token={stream.token}"

  Logs      {place.state / "demo.log"}
            {place.state / "demo-publisher.log"}
  Ctrl-C ends.
{line}"""


def _span(seconds: int) -> str:
    return f"{seconds // 60} minutes" if seconds >= 120 else f"{seconds} seconds"


def _say(text: str) -> None:
    # Flushed, or a pipe would show nothing for as long as the demo runs.
    print(text, flush=True)


def _run(program: Callable[[], None]) -> int:
    """Run the program and turn the way it ends into an exit code."""
    try:
        program()
    except Stopped:
        _say("The market demo has ended.")
        return 0
    except (DemoError, StateInUse, SSEAppError, httpx.HTTPError) as error:
        print(f"market demo: {error}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(_run(main))
