"""Start, watch and end server processes: CPU time and memory of a whole process tree, from the kernel."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_ESTABLISHED = "01"
"""A state of a connection, in /proc/net/tcp."""

_MARK = "BENCH_SERVER"
"""A variable of the environment, by which a server's processes are known when their parent has ended."""


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


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    session: int


def _all_processes() -> Iterator[_Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    yield _Process(int(entry.name), int(fields[1]), int(fields[3]))


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


def proportional_kib(pids: Iterable[int]) -> int:
    """Return the memory of processes in KiB, shared pages divided by their users. Those that have ended have none."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += _rollup(pid, "smaps_rollup", ("Pss",))[0]
    return total


def _connected(port: int) -> set[str]:
    """Return the connections to a port of this machine, as links of /proc/PID/fd name them."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().split("\n")[1:]:
        fields = line.split()
        if fields and fields[1].endswith(f":{port:04X}") and fields[3] == _ESTABLISHED:
            found.add(f"socket:[{fields[9]}]")
    return found


class Processes:
    """The processes of one server under test: started together, summed together, ended together.

    What they have started belongs to them, also where the one that started it has ended.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._started: list[subprocess.Popen[bytes]] = []
        self._sessions: set[int] = set()
        self._mark = f"{os.getpid()}-{id(self)}"

    def start(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        """Start one process; what it prints goes to the log."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                list(argv),
                env={**os.environ, **(env or {}), _MARK: self._mark},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        self._sessions.add(process.pid)

    def pids(self) -> list[int]:
        """Every process of this server that is alive, those that were started by others of them included."""
        alive = list(_all_processes())
        found = set(self.parents)
        found |= {one.pid for one in alive if one.session in self._sessions and self._is_ours(one.pid)}
        grown = True
        while grown:
            children = {one.pid for one in alive if one.parent in found} - found
            found |= children
            grown = bool(children)
        return sorted(found)

    def _is_ours(self, pid: int) -> bool:
        """Whether a process has been started by one of these: the number of an old session may have been given anew."""
        with contextlib.suppress(OSError):
            return f"{_MARK}={self._mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False

    @property
    def parents(self) -> list[int]:
        """The processes that were started here, of those that are alive."""
        return [process.pid for process in self._started if process.poll() is None]

    def connections(self, port: int) -> dict[int, int]:
        """Return how many connections to a port each process has accepted."""
        connected = _connected(port)
        counts = {}
        for pid in self.pids():
            counts[pid] = 0
            with contextlib.suppress(OSError):
                for number in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        counts[pid] += os.readlink(f"/proc/{pid}/fd/{number}") in connected
        return counts

    def logged(self, text: str) -> int:
        """Return how often a text stands in the log."""
        return self._log.read_text(errors="replace").count(text)

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
        used = 0.0
        for pid in self.pids():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                used += _cpu_seconds(pid)
        return used

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

    def forget_ended(self) -> None:
        """Have `check` not complain of those that have ended on purpose."""
        self._started = [process for process in self._started if process.poll() is None]

    def stop(self) -> None:
        """End what was started: SIGTERM, and SIGKILL for what is left after five seconds."""
        parents = self.parents
        _signal(parents or self.pids(), signal.SIGTERM)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and (self.parents if parents else self.pids()):
            time.sleep(0.05)
        _signal(self.pids(), signal.SIGKILL)
        for process in self._started:
            process.wait(5)
        self._started.clear()


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
