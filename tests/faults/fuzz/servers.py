"""The servers that are fuzzed, and what each holds: tasks, connections, streams, memory."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from httptools import HttpRequestParser
from tornado.web import RequestHandler

from sse_app import Settings, SSEApp
from sse_app.http.chunked_body import ChunkedBody
from sse_app.http.connection import Connection
from sse_app.http.exchange import Exchange
from sse_app.http.server import HTTPServer
from sse_app.node import LARGE_BODIES_BYTES, connection_limits
from sse_app.process.tuning import loop_factory
from sse_app.settings.model import ChannelSettings, KeepaliveSettings, Limits
from sse_app.streams.connection import tune
from sse_app.streams.stream import Stream
from tests.faults.fuzz.fuzzed import PER_USER, Fuzzed
from tests.faults.ways import STATE, one_process, several_machines
from tests.support.forging import Forge, make_forges
from tests.support.minting import EVERYTHING, add_account
from tests.support.node_processes import ALONE
from tests.support.server_process import ServerProcess, until_the_end
from tests.support.supervised import ServerWithWorkers
from tests.support.upgradable import Upgradable
from tests.support.usage import Usage

USER, PASSWORD = "ann", "correct horse battery"

SHORT_HISTORY = 3
"""How many events are kept of a channel whose name ends with ``short``."""

CHANNELS: list[Any] = [
    *("dashboard", "alerts", "training", "backtest"),
    {"pattern": "user.*.short", "history_size": SHORT_HISTORY},
    {"pattern": "user.*.table", "conflate": "key"},
    "user.**",
]
"""The channels that there are."""

EXPECTED = ("login_refused", "proxy_not_trusted", "refresh_reused", "worker_silent", "node_silent")
"""What a server may say of what is done to it, at level warning; and of others, on a busy machine."""

OF_REQUESTS = (
    *(Connection, Exchange, ChunkedBody, RequestHandler, Stream),
    *(HttpRequestParser, asyncio.Task, socket.socket),
)
"""What a server makes for a request or a stream, and needs no more once that has ended."""

LAST = 8
"""So few of each are not looked at: of some the last one is kept."""

_METRICS = re.compile(
    r"^(sse_app_(?:connections|streams|streams_behind|backlog_bytes|anonymous_streams))(?:{[^}]*})? ([0-9.e+]+)$",
    re.MULTILINE,
)

Answer = TypeVar("Answer")


class InThisProcess(Fuzzed):
    """A server in a thread of this process, where its tasks and all that it has registered can be looked at."""

    def __init__(self, directory: Path) -> None:
        state_dir = directory / STATE
        forges = _prepare(state_dir)
        add_account(state_dir, USER, PASSWORD, EVERYTHING)
        self._started: Future[int] = Future()
        self._end = asyncio.Event()
        self._settings = Settings(
            state_dir=state_dir,
            channels=tuple(each if isinstance(each, str) else ChannelSettings(**each) for each in CHANNELS),
            keepalive=KeepaliveSettings(ping_interval=1.0),
            limits=Limits(streams_per_user=PER_USER),
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        super().__init__(state_dir, forges, [self._started.result(60)])

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._started.set_exception(error)
            raise

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sse = SSEApp(self._settings)
        await self._sse.start()
        self._server = HTTPServer(
            self._sse.application(),
            tune=lambda sock: tune(sock, self._settings),
            limits=connection_limits(self._settings),
            counts=self._sse.node.metrics.connections,
        )
        listening = socket.create_server(("127.0.0.1", 0), backlog=100)
        listening.setblocking(False)
        self._server.add_sockets([listening])
        self._started.set_result(listening.getsockname()[1])
        await self._end.wait()
        await self._server.close_all_connections()
        await self._sse.stop()

    def close(self) -> None:
        """End it."""
        self.http.close()
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _in_loop(self, look: Callable[[], Answer]) -> Answer:
        """Call a function between two callbacks of the server's event loop, without a task of its own."""
        answered: Future[Answer] = Future()

        def call() -> None:
            try:
                answered.set_result(look())
            except BaseException as error:
                answered.set_exception(error)

        self._loop.call_soon_threadsafe(call)
        return answered.result(60)

    def held(self) -> Mapping[str, int]:
        """Return its tasks, connections and registrations."""
        return self._in_loop(self._held)

    def _held(self) -> dict[str, int]:
        node, server = self._sse.node, self._server
        hub = node.hub
        return {
            "tasks": len(asyncio.all_tasks(self._loop)),
            "streams": len(hub.streams),
            "users with streams": len(hub.streams_of_subject),
            "streams of addresses": hub.streams_of_address.total(),
            "addresses": len(hub.streams_of_address),
            "streams on channels": hub.streams_on_channel.total(),
            "channels": len(hub.streams_on_channel),
            "streams behind": len(hub.laggards),
            "streams being opened": node.opening.count,
            "connections": node.metrics.connections.open,
            "deadlines": sum(len([*deadlines]) for deadlines in server.deadlines),
            "publishers that wait": node.publisher.appending + node.publisher.waiting,
            "bytes that wait": node.publisher._waiting_bytes,
            "bytes of large bodies": LARGE_BODIES_BYTES - node.large_bodies._left,
        }

    def kept(self) -> Mapping[str, int]:
        """Return what there is of the objects that are made for requests."""
        kinds = Counter(
            kind.__name__ for one in gc.get_objects() for kind in OF_REQUESTS if isinstance(one, kind)
        )
        return {kind.__name__: max(kinds[kind.__name__], LAST) for kind in OF_REQUESTS} | {
            "descriptors": len([*Path("/proc/self/fd").iterdir()])
        }

    def memory(self) -> int:
        """Return 0: the memory is that of the tests."""
        return 0


class InOtherProcesses(Fuzzed):
    """Servers in processes of their own.

    Args:
        servers: they run, and have the user.
        pids: returns the processes.
        spare: how many sockets each may open for itself, when it needs them first, to a database and to others.
    """

    def __init__(
        self,
        state_dir: Path,
        forges: Sequence[Forge],
        servers: Sequence[ServerProcess],
        pids: Callable[[], Sequence[int]],
        spare: int = 0,
    ) -> None:
        self._servers = servers
        self._pids = pids
        self._own = {pid: _sockets(pid) + spare for pid in pids()}
        super().__init__(state_dir, forges, [server.port for server in servers])

    def held(self) -> Mapping[str, int]:
        """Return how many sockets they have, connections among them; databases are opened when they are needed."""
        return {f"sockets of {pid}": max(_sockets(pid), self._own.get(pid, 0)) for pid in self._pids()}

    def kept(self) -> Mapping[str, int]:
        """Return what they say of themselves, and their threads: those of pools come when needed, and stay."""
        held: Counter[str] = Counter()
        for name, value in _METRICS.findall(self.http.get("/metrics").raise_for_status().text):
            held[name] += int(float(value))
        usage = [Usage(pid) for pid in self._pids()]
        held["threads"] = max(24, *(each.threads for each in usage))
        held["descriptors"] = max(100, *(each.descriptors for each in usage))
        return held

    def memory(self) -> int:
        """Return the memory of the process that has most."""
        return max(Usage(pid).resident for pid in self._pids())

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Fail where one logs something unexpected meanwhile."""
        with ExitStack() as ends:
            for server in self._servers:
                ends.enter_context(server.log_stays_quiet())
            yield


def _sockets(pid: int) -> int:
    """Return how many sockets a process has."""
    count = 0
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # it is just being closed
            count += os.readlink(file).startswith("socket:")
    return count


SETTINGS: Mapping[str, Any] = {
    "CHANNELS": CHANNELS,
    "KEEPALIVE__PING_INTERVAL": 1,
    "LIMITS__CONNECTIONS_PER_ADDRESS": 1000,
    "LIMITS__STREAMS_PER_USER": PER_USER,
    "expected": EXPECTED,
}


def _prepare(state_dir: Path) -> list[Forge]:
    """Lay down keys of four kinds."""
    state_dir.mkdir(mode=0o700, parents=True)
    return make_forges(state_dir / "keys")


@contextmanager
def here(directory: Path) -> Iterator[Fuzzed]:
    """One server in this process."""
    server = InThisProcess(directory)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def in_one_process(directory: Path) -> Iterator[Fuzzed]:
    """One process, with its log in a file."""
    forges = _prepare(directory / STATE)
    with one_process(directory, {}, **SETTINGS) as deployment:
        (server,) = deployment.servers
        server.add_user(USER, PASSWORD, subscribe="**", publish="**", admin=True)
        fuzzed = InOtherProcesses(server.state_dir, forges, [server], lambda: [server.pid])
        yield fuzzed
        fuzzed.http.close()


@contextmanager
def behind_one_port(directory: Path) -> Iterator[Fuzzed]:
    """A parent and three workers, which all listen on one port, with their log in a file."""
    forges = _prepare(directory / STATE)
    server = ServerWithWorkers(workers=3, state_dir=directory / STATE, **SETTINGS)
    with until_the_end(server):
        server.until_workers(1, 2, 3)
        server.add_user(USER, PASSWORD, subscribe="**", publish="**", admin=True)
        fuzzed = InOtherProcesses(
            server.state_dir, forges, [server], lambda: [*server.workers().values()], spare=8
        )
        fuzzed.is_one_process = False
        yield fuzzed
        fuzzed.http.close()


@contextmanager
def on_postgres(directory: Path) -> Iterator[Fuzzed]:
    """Two workers of one machine and another machine, with their log on PostgreSQL."""
    forges = _prepare(directory / STATE / ALONE)
    with several_machines(directory, {}, **SETTINGS) as deployment:
        servers: Sequence[Upgradable] = deployment.servers
        servers[0].command(
            *("user", "add", USER, "--subscribe", "**", "--publish", "**", "--admin", "--password-stdin"),
            input=f"{PASSWORD}\n",
        )
        fuzzed = InOtherProcesses(
            directory / STATE / ALONE, forges, servers, lambda: [server.pid for server in servers], spare=8
        )
        yield fuzzed
        fuzzed.http.close()


WAYS: Mapping[str, Callable[[Path], Any]] = {
    "here": here,
    "one process": in_one_process,
    "several processes behind one port": behind_one_port,
    "several machines": on_postgres,
}
"""The ways to run what is fuzzed."""
