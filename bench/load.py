"""The two load programs seen from Python: the stream client, driven by commands, and the publisher."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from bench.native import program

Report = dict[str, Any]


class LoadFailed(Exception):
    """Streams or requests failed, so that the figures would mean nothing."""


def path_file(paths: Iterable[str]) -> Path:
    """Write a file of request paths for the load programs, and return its name."""
    with tempfile.NamedTemporaryFile("w", suffix=".paths", delete=False) as file:
        file.writelines(path + "\n" for path in paths)
    return Path(file.name)


class StreamClient:
    """N streams held by the C client (`client.c`): one path each, or fewer paths taken in turn.

    Args:
        port: of the server.
        paths: of the streams, or a file of them that others use too and that is left in place.
        streams: how many.
        ready: what tells that a stream is subscribed, `head` or `connected`.
        sources: over so many loopback addresses the connections are spread.
        first_source, first_path: where this client's addresses and paths begin, beside those of others.
    """

    def __init__(
        self,
        port: int,
        paths: Sequence[str] | Path,
        streams: int,
        *,
        ready: str = "head",
        sources: int = 16,
        first_source: int = 0,
        first_path: int = 0,
    ) -> None:
        self._shared = isinstance(paths, Path)
        self._paths = paths if isinstance(paths, Path) else path_file(paths)
        self.streams = streams
        self._process = subprocess.Popen(
            [
                program("client"),
                "127.0.0.1",
                *map(str, (port, self._paths, streams, sources, ready, first_source, first_path)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """The processes that hold the streams."""
        return [self._process.pid]

    def close(self) -> None:
        """End the client, and with it all its streams."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        if not self._shared:
            self._paths.unlink(missing_ok=True)

    def send(self, command: str) -> None:
        """Send one command of `client.c`; `receive` has to follow."""
        assert self._process.stdin
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LoadFailed("the stream client has ended") from None

    def receive(self, timeout: float = 10.0) -> Report:
        """Return the report that the client answers a command with."""
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], timeout + 10)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise LoadFailed("the stream client did not answer")
        return cast(Report, json.loads(line))

    def ask(self, command: str, timeout: float = 10.0) -> Report:
        """Send one command of `client.c` and return the report it answers with."""
        self.send(command)
        return self.receive(timeout)

    def open(self, inflight: int = 100, timeout: float = 60.0) -> Report:
        """Connect all streams that are not. Raises LoadFailed unless every one is ready."""
        for _ in range(4):  # some servers close a stream or two right after they accepted it
            report = self.ask(f"open {inflight} {int(timeout * 1000)}", timeout)
            if report["ready"] == self.streams:
                return report
            if report["failed"]:
                break
        raise LoadFailed(f"{report['ready']} of {self.streams} streams are ready: {report['error']}")

    def reset(self) -> Report:
        """Zero the counters of events; CPU and streams stay."""
        return self.ask("reset")

    def wait(self, events: int, timeout: float) -> Report:
        """Wait until every stream has had so many events since the reset, or the time is over."""
        return self.ask(f"wait {events} {int(timeout * 1000)}", timeout)

    def wait_total(self, events: int, timeout: float) -> Report:
        """Wait until all streams together have had so many events since the reset, or the time is over."""
        return self.ask(f"total {events} {int(timeout * 1000)}", timeout)


def verify(report: Report, events: int) -> Report:
    """Raise LoadFailed unless every stream had exactly so many events, in order, none lost, none twice."""
    wrong = report["gaps"] or report["duplicates"] or report["broken"] or report["failed"]
    if wrong or report["fewest"] != events or report["most"] != events:
        kept = {key: value for key, value in report.items() if not key.endswith("_us")}
        raise LoadFailed(f"expected {events} events a stream, once and in order; got {kept}")
    return report


@dataclass(frozen=True)
class Publish:
    """How one server wants its events: where to, and what is around the item (see `publisher.c`)."""

    port: int
    path: str
    item: str
    prefix: str = ""
    separator: str = ""
    suffix: str = ""
    headers: tuple[str, ...] = ()
    batch: int = 1
    paths: tuple[str, ...] = field(default=())
    keys: int = 1
    """How many keys the items have, in turn."""


class Publisher:
    """One run of `publisher.c` in a process of its own."""

    def __init__(
        self,
        publish: Publish,
        count: int,
        *,
        rate: float = 0.0,
        connections: int = 1,
        first: int = 1,
        method: str = "POST",
    ) -> None:
        self._paths = path_file(publish.paths or [publish.path])
        self._count = count
        self._limit = 60.0 + (count / rate if rate else 0.0)
        options = {
            "host": "127.0.0.1",
            "port": publish.port,
            "paths": self._paths,
            "count": count,
            "rate": rate,
            "connections": connections,
            "method": method,
            "prefix": publish.prefix,
            "item": publish.item,
            "separator": publish.separator,
            "suffix": publish.suffix,
            "batch": publish.batch,
            "first": first,
            "keys": publish.keys,
        }
        argv = [program("publisher")]
        for name, value in options.items():
            argv += [f"--{name}", str(value)]
        for header in publish.headers:
            argv += ["--header", header]
        self._started = time.monotonic()
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def result(self) -> Report:
        """Wait for the end and return the report. Raises LoadFailed unless every answer was a 2xx."""
        try:
            left = self._limit - (time.monotonic() - self._started)
            output, _ = self._process.communicate(timeout=max(1.0, left))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise LoadFailed(f"publishing {self._count} took more than {self._limit:.0f} s") from None
        finally:
            self._paths.unlink(missing_ok=True)
        if self._process.returncode != 0:
            raise LoadFailed("the publisher failed")
        report = cast(Report, json.loads(output))
        good = sum(number for status, number in report["statuses"].items() if status.startswith("2"))
        if good != self._count:
            raise LoadFailed(f"{good} of {self._count} requests succeeded: {report['error']}")
        return report
