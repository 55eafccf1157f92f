"""Processes of the program that need not load it: each is forked from one process that has loaded it.

A server spends more than half of its start on loading its modules, and the tests start hundreds. What runs is all
that ``python main.py`` does from `run` on, in a process of its own, with the environment, the directory and the
streams that it is given. Tests of what comes before that, or of how the process looks from outside, start the program
with `subprocess.Popen`.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import inspect
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, str(ROOT / "main.py"))
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_COMMANDS = [f"sse_app.cli.{path.stem}" for path in sorted((ROOT / "sse_app/cli").glob("[a-z]*.py"))]
_LOADED_BY_A_SERVER = (
    "sse_app.process.server",
    "sse_app.auth.tokens.jose",
    "sse_app.monitoring.prometheus",
    "uvloop",
    "sse_app.eventlog.postgres.log",
    "sse_app.eventlog.postgres.copy",
    "sse_app.auth.copy",
    "sse_app.cluster.machines",
    "sse_app.process.database_check",
    "sse_app.process.dry_run",
    "sse_app.process.supervisor",
)
_LIMITED = 'ulimit -n "$1"; shift; exec "$@"'
_WITH_SOCKET = 'exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
"""Passes standard input on as a listening socket (sd_listen_fds(3))."""

CLOCK = "WALL_CLOCK"
"""The variable that says where the clock of ``wall_clock.c`` is, which is read again in each forked process."""

_LARGEST = 1 << 18
"""Bytes of the longest request: arguments and environment."""


def start(
    words: Sequence[str],
    *,
    environment: Mapping[str, str],
    for_children: Mapping[str, str] = MappingProxyType({}),
    cwd: Path = ROOT,
    listening: socket.socket | None = None,
    program: Sequence[str] = PROGRAM,
    open_files: int = 0,
    **streams: Any,
) -> subprocess.Popen[Any]:
    """Start a command of the program, as ``subprocess.Popen([*PROGRAM, *words])`` does.

    Args:
        words: of the command.
        environment: all of its variables; where more than settings and folders differ from those of the tests, as the
            interpreter or the C library may have read them at their start, the process is an ordinary one.
        for_children: further variables, which nothing reads at the process's start: those of programs that it runs
            itself, say.
        cwd: where it runs.
        listening: a socket that it gets as systemd passes one; its standard input is empty then.
        program: what is run: ours, or a module of the tests (`module`).
        open_files: how many files it may have open; 0 leaves that to the system. Else the process is an ordinary one.
        streams: arguments of `subprocess.Popen` for standard input, output and error.
    """
    command = [*program, *words]
    forked = _others(environment) == _others(os.environ) and not open_files
    if listening is not None and forked:
        streams |= {"stdin": subprocess.DEVNULL, "pass_fds": [listening.fileno()]}
    elif listening is not None:
        command = ["/bin/sh", "-c", _WITH_SOCKET, "sh", *command]
        streams |= {"stdin": listening.fileno()}
    if open_files:
        command = limited(command, open_files)
    kind = _Forked if forked else subprocess.Popen
    return kind(command, env={**environment, **for_children}, cwd=cwd, **streams)


def limited(command: Sequence[str], open_files: int) -> list[str]:
    """Return a command that runs another one, which may have so many files open."""
    return ["/bin/sh", "-c", _LIMITED, "sh", str(open_files), *command]


def module(name: str) -> Sequence[str]:
    """Return the command that runs a module's ``main()`` in a process of its own."""
    return (sys.executable, "-m", name)


def _others(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a process reads at its start, but not again when it is forked."""
    folders = ("HOME", "XDG_", "SYSTEMD_")
    read_again = (
        "SSE_APP_",
        "PYTEST_CURRENT_TEST",
        *folders,
        *((CLOCK, "LD_PRELOAD") if CLOCK in environment else ()),
    )
    return {name: value for name, value in environment.items() if not name.startswith(read_again)}


class _Forked(subprocess.Popen[Any]):
    """A process that is forked, and becomes a child of this one like any other."""

    def _execute_child(self, *values: Any) -> None:
        names = [*inspect.signature(super()._execute_child).parameters]  # type: ignore[misc]
        given = dict(zip(names, values, strict=True))
        ends = [given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        request = {
            "arguments": [os.fspath(one) for one in given["args"]],
            "environment": dict(given["env"]),
            "cwd": os.fspath(given["cwd"]),
        }
        streams = [number if end == -1 else end for number, end in enumerate((ends[0], ends[3], ends[5]))]
        try:
            library = given["env"]["LD_PRELOAD"] if CLOCK in given["env"] else ""
            self.pid = _loaded(library).fork(json.dumps(request).encode(), [*streams, *given["pass_fds"]])
        finally:
            self._close_pipe_fds(*ends)  # type: ignore[attr-defined]
        self._child_created = True


class _Loaded:
    """The process that has loaded the program, and waits for what it is to become.

    Args:
        library: that it preloads, as have all that are forked from it.
    """

    def __init__(self, library: str) -> None:
        self._turn = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.preloaded", str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, "LD_PRELOAD": library} if library else None,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        atexit.register(self.close)

    def fork(self, request: bytes, files: list[int]) -> int:
        """Have a child of this process forked off, with these files from 0 on, and return its number."""
        with self._turn:
            _adopt_orphans(True)
            try:
                socket.send_fds(self._channel, [request], files)
                return int(self._channel.recv(32))
            finally:
                _adopt_orphans(False)

    def close(self) -> None:
        """End the process."""
        self._channel.close()
        self._process.wait()


_instances: dict[tuple[int, str], _Loaded] = {}


def _loaded(library: str) -> _Loaded:
    """Return the one of this process with this library, started at the first use."""
    key = (os.getpid(), library)
    if key not in _instances:
        _instances[key] = _Loaded(library)
    return _instances[key]


def _adopt_orphans(wanted: bool) -> None:
    """Have processes whose parent has ended become children of this one, or of init again (prctl(2))."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _fork_for(channel: socket.socket) -> list[str] | None:
    """Fork a process for each request; return its arguments in each of these, and None when no more can come."""
    while True:
        message, files, _, _ = socket.recv_fds(channel, _LARGEST, 4)
        if not message:
            return None
        parent = os.fork()
        if parent == 0:
            parent = os.getpid()
            if os.fork():
                os._exit(0)
            return _become(json.loads(message), files, channel, parent)
        for descriptor in files:
            os.close(descriptor)
        os.waitpid(parent, 0)


def _become(request: dict[str, Any], files: list[int], channel: socket.socket, parent: int) -> list[str]:
    while os.getppid() == parent:  # until it has ended, and this one is a child of the process that asked
        time.sleep(0.0002)
    channel.send(b"%d" % os.getpid())
    channel.close()
    for number, descriptor in enumerate(files):
        os.dup2(descriptor, number)
        if descriptor != number:
            os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if CLOCK in os.environ:
        ctypes.CDLL(None).wall_clock_begin()
    if len(files) > len(("input", "output", "error")):
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
    arguments: list[str] = request["arguments"]
    return arguments


def _prepare_paths() -> None:
    """Have the patterns of the paths compiled, and the pages read: both are kept."""
    from sse_app import SSEApp
    from sse_app.handlers.site import pages

    nowhere: Any = SimpleNamespace(node=None)
    SSEApp.routes(nowhere)
    pages.read_ahead()


def _run(channel: socket.socket) -> int:
    from sse_app.cli import main

    for module in (*_COMMANDS, *_LOADED_BY_A_SERVER):
        import_module(module)
    _prepare_paths()
    gc.collect()
    gc.freeze()  # memory that a collection looks at would have to be copied in each process
    arguments = _fork_for(channel)
    if arguments is None:
        return 0
    sys.orig_argv[:] = arguments
    if arguments[1] == "-m":
        sys.argv[:] = arguments[2:]
        import_module(arguments[2]).main()
        return 0
    sys.argv[:] = arguments[1:]
    main.run()


if __name__ == "__main__":
    raise SystemExit(_run(socket.socket(fileno=int(sys.argv[1]))))
