"""A real server in a process of its own, as an operator would start it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from tests.support.minting import add_account, mint, split
from tests.support.ports import reserve_port
from tests.support.preloaded import PROGRAM as PROGRAM
from tests.support.preloaded import ROOT as ROOT
from tests.support.preloaded import start
from tests.support.waiting import until

_TOKEN = re.compile(r"eyJ[\w-]{10,}")


def clean_environment(**variables: str) -> dict[str, str]:
    """Return the environment without settings of ours, and with these variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SSE_APP_")} | variables


def run_program(
    *words: str,
    environment: Mapping[str, str],
    cwd: Path = ROOT,
    input: str | None = None,
    within: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a command of the program to its end, and return its status and what it printed.

    Args:
        words: of the command.
        environment: all of its variables.
        cwd: where it is run.
        input: what it reads.
        within: another command that runs it, such as ``nsenter``.
    """
    streams: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    if input is not None:
        streams["stdin"] = subprocess.PIPE
    with (
        subprocess.Popen([*within, *PROGRAM, *words], env=environment, cwd=cwd, text=True, **streams)
        if within
        else start(words, environment=environment, cwd=cwd, text=True, **streams)
    ) as process:
        try:
            printed, complained = process.communicate(input, timeout=60)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, printed, complained)


class ServerProcess:
    """Starts, kills and restarts a server on one port and one state directory.

    Args:
        state_dir: its state directory.
        expected: texts that lines of its log at level warning or above may contain.
        open_files: how many files it may have open; 0 leaves that to the system.
        settings: ``SSE_APP_…`` variables without the prefix, e.g. ``KEEPALIVE__PING_INTERVAL=1``.
    """

    def __init__(
        self, *, state_dir: Path, expected: tuple[str, ...] = (), open_files: int = 0, **settings: Any
    ) -> None:
        self.state_dir = state_dir
        self.expected = expected
        self.open_files = open_files
        everywhere = settings.get("HOST", "127.0.0.1") != "127.0.0.1"
        self.port = int(settings.pop("PORT", 0) or reserve_port(self, everywhere=everywhere))
        self.url = f"http://127.0.0.1:{self.port}"
        state_dir.parent.mkdir(parents=True, exist_ok=True)
        self.log_path = state_dir.with_suffix(f".{self.port}.log")
        self.for_children: dict[str, str] = {}
        """Variables that matter only to programs which the server runs itself."""
        self.environment = clean_environment() | {
            "SSE_APP_PORT": str(self.port),
            "SSE_APP_STATE_DIR": str(state_dir),
            "SSE_APP_LOG__LEVEL": "debug",
            **{
                f"SSE_APP_{name}": value if isinstance(value, str) else json.dumps(value)
                for name, value in settings.items()
            },
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, stderr: int | None = None) -> None:
        """Start the server and wait until it is ready.

        Args:
            stderr: the descriptor of its standard error, if it is not its log file.
        """
        with self.log_path.open("ab") as log:
            streams: dict[str, Any] = {
                "stdin": subprocess.DEVNULL,
                "stderr": log if stderr is None else stderr,
            }
            self.process = start(
                ["serve"],
                environment=self.environment,
                for_children=self.for_children,
                open_files=self.open_files,
                **streams,
            )
        until(self._ready, f"the server is ready; its log is {self.log_path}")

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_path.read_text()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """End the server as a power cut would: ``kill -9``."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask the server to end, and return its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def processor_time(self) -> float:
        """Return how many seconds the server has had of the processors: they do not depend on what else is busy."""
        assert self.process is not None
        clock = ~self.process.pid << 3 | 2  # that of all threads of the process (clock_getcpuclockid(3))
        return time.clock_gettime(clock)

    def command(self, *arguments: str, input: str | None = None) -> str:
        """Run an ``sse-app`` command on this server's state and return what it prints."""
        done = run_program(*arguments, environment=self.environment, input=input)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stream_token(
        self, *channels: str, subject: str = "tester", session: str = "", ttl: float = 600
    ) -> str:
        """Return a stream token for the channels."""
        grants = Grants.of(split(",".join(channels)))
        return mint(self.state_dir, TokenKind.STREAM, grants, subject=subject, session=session, ttl=ttl)

    def access_token(
        self,
        *,
        subscribe: str = "**",
        publish: str = "**",
        admin: bool = False,
        subject: str = "tester",
        session: str = "",
        ttl: float = 600,
    ) -> str:
        """Return an access token."""
        grants = Grants.of(split(subscribe), split(publish), admin)
        return mint(self.state_dir, TokenKind.ACCESS, grants, subject=subject, session=session, ttl=ttl)

    def add_user(
        self, name: str, password: str, *, subscribe: str = "", publish: str = "", admin: bool = False
    ) -> None:
        """Make an account."""
        add_account(self.state_dir, name, password, Grants.of(split(subscribe), split(publish), admin))

    def publisher(self) -> httpx.Client:
        """Return an HTTP client that may publish everywhere, to be used in a ``with``."""
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.access_token()}"},
            timeout=30,
            # By default a connection is kept for five seconds, which a busy machine may take.
            limits=httpx.Limits(keepalive_expiry=60),
        )

    def stream_url(self, channels: str, token: str, **query: str) -> str:
        """Return the URL of a stream."""
        return str(httpx.URL(f"{self.url}/api/v1/sse/{channels}", params={"token": token, **query}))

    def log_lines(self) -> list[dict[str, object]]:
        """Return the lines of the log."""
        return _lines(self._log())

    def _log(self) -> str:
        """Return the text of the log, once no line is just being written."""
        text = ""

        def is_whole() -> bool:
            nonlocal text
            text = self.log_path.read_text()
            return not text or text.endswith("\n")

        until(is_whole, f"the last line of {self.log_path} is complete")
        return text

    @contextmanager
    def log_stays_quiet(self) -> Iterator[None]:
        """Fail where something of level warning or above that is not expected is logged meanwhile."""
        before = len(self._log())
        yield
        self._check(self._log()[before:])

    def check_log(self) -> None:
        """Fail where the log has a token, a traceback, or a line of level warning or above not expected."""
        self._check(self._log())

    def _check(self, text: str) -> None:
        assert not _TOKEN.search(text), _TOKEN.findall(text)
        assert "Traceback" not in text, next(line for line in text.split("\n") if "Traceback" in line)
        for line in _lines(text):
            if line["level"] in ("warning", "error", "critical"):
                assert any(expected in str(line) for expected in self.expected), line


def _lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.split("\n") if line]


Server = TypeVar("Server", bound=ServerProcess)


def starting(make: Callable[..., Server]) -> Iterator[Callable[..., Server]]:
    """Yield a function that makes and starts servers; at the end they are stopped, and their logs are checked."""
    servers: list[Server] = []

    def start(**settings: Any) -> Server:
        server = make(**settings)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()
    for server in servers:
        server.check_log()


@contextmanager
def running(*, state_dir: Path, expected: tuple[str, ...] = (), **settings: Any) -> Iterator[ServerProcess]:
    """Run a server to the end of a test (`until_the_end`). The arguments are those of `ServerProcess`."""
    server = ServerProcess(state_dir=state_dir, expected=expected, **settings)
    with until_the_end(server):
        yield server


@contextmanager
def until_the_end(server: ServerProcess) -> Iterator[None]:
    """Run a server; it has to end with status 0 when it is asked to, and with nothing unexpected in its log."""
    try:
        server.start()
        yield
        assert server.stop() == 0
    finally:
        if server.process is not None:
            server.kill()
    server.check_log()
