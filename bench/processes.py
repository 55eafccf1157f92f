"""Start, watch and end server processes: CPU time and memory of a whole process tree, from the kernel."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class ServerFailed(Exception):
    """A server did not start, or died while it was measured."""


@dataclass(frozen=True)
class Memory:
    """Memory of a process tree in KiB: resident, and proportional (shared pages divided by their users)."""

    rss: int
    pss: int


def raise_file_limit() -> int:
    """Lift the soft limit of open files to the hard one, for us and all we start; return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that no process listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                yield int(entry.name), int(stat.rpartition(")")[2].split()[1])


def tree(root: int) -> list[int]:
    """Return the process and all its descendants that are alive, parents first."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def _cpu_seconds(pid: int) -> float:
    """CPU time of one process, user and system, all its threads ever, to the nanosecond.

    This is the clock that ``clock_getcpuclockid(3)`` returns; /proc/PID/stat has the sum in steps of 10 ms.
    """
    return time.clock_gettime((~pid << 3) | 2)


def _rollup(pid: int, path: str, names: Sequence[str]) -> list[int]:
    values = dict.fromkeys(names, 0)
    for line in Path(f"/proc/{pid}/{path}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in values:
            values[name] = int(value.split()[0])
    return [values[name] for name in names]


class Processes:
    """The processes of one server under test: started together, summed together, ended together."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        """Start one process; what it prints goes to the log."""
        with self._log.open("ab") as log:
            self._started.append(
                subprocess.Popen(
                    list(argv),
                    env={**os.environ, **(env or {})},
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def pids(self) -> list[int]:
        """Every process of this server that is alive, children included."""
        return [pid for process in self._started if process.poll() is None for pid in tree(process.pid)]

    def check(self) -> None:
        """Raise ServerFailed, with the end of the log, if a process has ended."""
        for process in self._started:
            if process.poll() is not None:
                tail = self._log.read_text(errors="replace")[-1500:]
                raise ServerFailed(f"{process.args!r} ended with status {process.returncode}: {tail}")

    def wait_for_port(self, port: int, timeout: float = 20.0) -> None:
        """Return as soon as something accepts connections on the port."""
        deadline = time.monotonic() + timeout
        while True:
            self.check()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise ServerFailed(f"nothing listens on port {port} after {timeout} s") from None
                time.sleep(0.02)

    def cpu_seconds(self) -> float:
        """CPU time of all processes since they began."""
        return sum(_cpu_seconds(pid) for pid in self.pids())

    def memory(self) -> Memory:
        """Memory of all processes now."""
        rss = pss = 0
        for pid in self.pids():
            part = _rollup(pid, "smaps_rollup", ("Rss", "Pss"))
            rss, pss = rss + part[0], pss + part[1]
        return Memory(rss, pss)

    def reset_peak(self) -> None:
        """Begin a new high-water mark of resident memory."""
        for pid in self.pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_rss(self) -> int:
        """The high-water mark of resident memory in KiB since `reset_peak`, summed over the processes."""
        return sum(_rollup(pid, "status", ("VmHWM",))[0] for pid in self.pids())

    def stop(self) -> None:
        """End what was started: SIGTERM, and SIGKILL for what is left after five seconds."""
        pids = self.pids()
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) in {process.pid for process in self._started}:
                    os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait(5)
        self._started.clear()
