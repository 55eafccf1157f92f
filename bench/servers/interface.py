"""What every server under test looks like to a scenario: start, paths, publishing, processes, stop."""

from __future__ import annotations

import shutil
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from bench.load import Publish
from bench.payload import EVENT_ITEM
from bench.processes import Processes, ServerFailed, free_port

APPS = Path(__file__).resolve().parent / "apps"
ENOUGH = 8
"""Connections for each worker of which it is all but certain that each worker gets one."""

START_SECONDS = 180.0
"""For so long many workers may start, one after the other."""

PEERS = Path(__file__).resolve().parent.parent / ".peers"


@dataclass(frozen=True)
class Options:
    """What a scenario asks of the server it starts."""

    ping_interval: int = 30
    """Seconds between pings to a stream."""
    foreign_tokens: bool = True
    """Whether the tokens of streams are signed outside of the server, which then has never seen them."""
    workers: int = 1
    """Processes that serve. Servers without workers take no notice."""
    streams_per_token: int = 1
    """So many streams share a user and a token, where there are any."""
    most_streams: int = 20_000
    """More are not needed; what a server limits is set by it."""
    env: dict[str, str] = field(default_factory=dict)
    """Further settings of sse_app; peers know nothing of them."""


class Server(ABC):
    """A server on a loopback port. Made new for each measurement, in a directory of its own."""

    name: ClassVar[str]
    title: ClassVar[str]
    ready: ClassVar[str] = "head"
    """What tells that a stream is subscribed: the response's head, or the event `connected`."""
    batches: ClassVar[bool] = False
    """Whether one request can publish many events."""
    streams: ClassVar[bool] = True
    """Whether it has streams at all."""
    health_path: ClassVar[str] = ""

    def __init__(self, directory: Path, options: Options) -> None:
        self.directory = directory
        self.options = options
        self.port = free_port()
        self.processes = Processes(directory / "server.log")

    @classmethod
    def missing(cls) -> str:
        """Return how to install what is not installed; empty when all is there."""
        return ""

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Return name and version of the software measured."""

    @abstractmethod
    def launch(self) -> None:
        """Start the processes."""

    def start(self) -> None:
        """Start, and return when connections are accepted, by all workers.

        Raises:
            ServerFailed: a process has ended, or does not answer in time.
        """
        self.launch()
        self.processes.wait_for_port(self.port)
        wanted = 1 if self.options.workers == 1 else ENOUGH * self.options.workers
        answers, deadline = 0, time.monotonic() + START_SECONDS
        while self.health_path and answers < wanted:
            try:
                self.check_health(timeout=5)
                answers += 1
            except OSError as error:
                self.processes.check()
                answers = 0
                if time.monotonic() > deadline:
                    raise ServerFailed(f"no answer from {self.health_path}: {error}") from None

    def check_health(self, timeout: float) -> None:
        """Ask for the health check over a new connection, which comes to any of the workers.

        Raises:
            OSError: there was no answer in time, or another than 200.
        """
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self.health_path}", timeout=timeout).close()

    def stop(self) -> None:
        """End all processes of this server."""
        self.processes.stop()

    def stream_paths(self, channels: Sequence[str], streams: int) -> list[str]:
        """Return request paths for so many streams, spread over the channels; fewer when they repeat."""
        del streams
        return [f"/stream/{channel}" for channel in channels]

    def publish(self, channels: Sequence[str], batch: int = 1) -> Publish:
        """Return how to publish, to the channels in turn. With a batch only where `batches` is true."""
        del batch
        paths = tuple(f"/publish/{channel}" for channel in channels)
        return Publish(
            self.port, paths[0], EVENT_ITEM, headers=("Content-Type: application/json",), paths=paths
        )


class PythonApp(Server):
    """A peer that is one module of `apps`, run by this interpreter or by the peers' own."""

    module: ClassVar[str]
    interpreter: ClassVar[Path] = Path(sys.executable)
    health_path = "/healthz"

    def launch(self) -> None:
        command = [str(self.interpreter), str(APPS / f"{self.module}.py"), str(self.port)]
        self.processes.start([*command, *self.arguments()])

    def arguments(self) -> list[str]:
        """Return what the module is told beside its port."""
        return []


def missing_command(command: str, install: str) -> str:
    """Return the install hint if the command is not on the PATH (or in sbin, which often is not)."""
    found = shutil.which(command) or shutil.which(command, path="/usr/sbin:/usr/local/sbin")
    return "" if found else f"{command} is not installed ({install})"
