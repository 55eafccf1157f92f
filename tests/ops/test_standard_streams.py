"""Standard input, output and error that are closed, full, or read by nobody: for the server and for each command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support.server_process import ROOT, ServerProcess, clean_environment, run_program
from tests.support.waiting import until

COMMANDS = (
    "--help",
    "--version",
    "check-config",
    "token",
    "user list",
    "keys list",
    "keys rotate",
    "audit",
    "eventlog show",
    "systemd install --user --unit-dir {state}",
)


_IN_A_USER_NAMESPACE = """
import ctypes, os, sys, time
os.seteuid(1)  # whose the namespace is; else the one who owns it could look into the server
assert ctypes.CDLL(None).unshare(0x10000000) == 0, "CLONE_NEWUSER"
while not open("/proc/self/uid_map").read():
    time.sleep(0.05)
os.setuid(0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with an account, keys and a log."""
    server = ServerProcess(state_dir=tmp_path_factory.mktemp("streams") / "state")
    try:
        server.start()
        server.command("user", "add", "ann", "--password-stdin", input="correct horse\n")
        server.command("revoke", "--subject", "ann")
    finally:
        server.stop()
    return server.state_dir


def in_shell(
    redirection: str, command: str, state: Path, stdout: int = subprocess.DEVNULL, **environment: str
) -> tuple[int, str]:
    """Run a command with redirections, and return its status and what it prints on standard error."""
    words = command.format(state=state.parent)
    line = f"exec {sys.executable} main.py {words} {redirection}"
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=ROOT,
        env=clean_environment(SSE_APP_STATE_DIR=str(state), **environment),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_whose_output_cannot_be_written_says_so_in_one_line(command: str, state: Path) -> None:
    for unbuffered in ("", "1"):  # it fails at the end, or amid the command
        assert in_shell(">/dev/full", command, state, PYTHONUNBUFFERED=unbuffered) == (
            1,
            "sse-app: cannot write the output: No space left on device\n",
        )


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_whose_reader_has_gone_ends_without_a_word(command: str, state: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        for unbuffered in ("", "1"):
            assert in_shell("", command, state, writing, PYTHONUNBUFFERED=unbuffered) == (
                1,
                "",
            )
    finally:
        os.close(writing)


@pytest.mark.slow
def test_a_command_with_closed_descriptors_works_without_them(state: Path) -> None:
    assert in_shell("<&- >&-", "check-config --set port=0", state) == (0, "")
    assert in_shell("<&- >&- 2>&-", "check-config --set port=0", state) == (0, "")
    status, errors = in_shell("<&-", "user add bob --password-stdin", state)
    assert (status, errors.count("\n"), "Traceback" in errors) == (1, 1, False)
    assert in_shell("2>&-", "check-config --set log.level=loud", state)[0] == 1
    assert in_shell("2>/dev/full", "check-config --set log.level=loud", state)[0] == 1
    assert in_shell("2>/dev/full", "no-such-command", state)[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_server_with_closed_descriptors_serves_and_ends_on_sigterm(closed: str, tmp_path: Path) -> None:
    server = ServerProcess(state_dir=tmp_path / "state")
    with server.log_path.open("ab") as log:
        server.process = process = subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$0" main.py serve {closed}', sys.executable],
            cwd=ROOT,
            env=server.environment,
            stderr=log,
        )
    try:
        until(server._ready, "the server is ready")
        for number, redirected in enumerate(("<&-", ">&-", "2>&-")):
            if redirected in closed.split():
                assert os.readlink(f"/proc/{process.pid}/fd/{number}") == "/dev/null"
        for _ in range(20):
            assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert server.stop() == 0
    finally:
        server.kill()
    server.check_log()


def test_sigusr1_is_ignored_with_a_line_and_sigquit_ends_as_sigterm_does(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server()
    assert server.process is not None
    server.process.send_signal(signal.SIGUSR1)
    until(lambda: any(line["event"] == "signal_ignored" for line in server.log_lines()), "it is logged")
    (line,) = [line for line in server.log_lines() if line["event"] == "signal_ignored"]
    assert line["signal"] == "SIGUSR1"
    assert "no log file" in str(line["detail"])
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    token = server.stream_token("dashboard")
    with httpx.stream("GET", server.stream_url("dashboard", token), timeout=30) as response:
        pieces = response.iter_text()
        assert "connected" in next(pieces)
        server.process.send_signal(signal.SIGQUIT)
        assert "closing" in "".join(pieces)
    assert server.process.wait(timeout=60) == 0
    assert [line["event"] for line in server.log_lines()][-1] == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_that_comes_while_the_server_loads_does_not_end_it(number: int, tmp_path: Path) -> None:
    server = ServerProcess(state_dir=tmp_path / "state")
    with server.log_path.open("ab") as log:
        server.process = subprocess.Popen(
            [sys.executable, "main.py", "serve"], cwd=ROOT, env=server.environment, stderr=log
        )
    ignored = f"/proc/{server.process.pid}/status"

    def is_ignored() -> bool:
        masks = dict(line.split(":\t", 1) for line in Path(ignored).read_text().splitlines() if ":\t" in line)
        return any(int(masks[mask], 16) >> (number - 1) & 1 for mask in ("SigIgn", "SigCgt"))

    try:
        until(is_ignored, "the program has begun")
        server.process.send_signal(number)
        until(server._ready, "the server is ready")
        assert server.stop() == 0
    finally:
        server.kill()


def test_a_second_sigterm_ends_the_server_at_once(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(STREAM__DRAIN_TIME=30)
    assert server.process is not None
    token = server.stream_token("dashboard")
    with httpx.stream("GET", server.stream_url("dashboard", token), timeout=30) as response:
        next(response.iter_text())
        server.process.send_signal(signal.SIGQUIT)
        until(lambda: any(line["event"] == "stopping" for line in server.log_lines()), "it drains")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) in (-signal.SIGTERM, 0)


@pytest.mark.slow
@pytest.mark.netns
@pytest.mark.parametrize("init", ["", "tini"])
def test_an_upgrade_where_a_container_would_end_with_the_server_is_refused(init: str, tmp_path: Path) -> None:
    server = ServerProcess(state_dir=tmp_path / "state", expected=("upgrade_refused",))
    command = [sys.executable, "main.py", "serve"]
    if init:  # a program of that name that waits for its only child, as the real one does
        (tmp_path / "tini").write_text('#!/bin/sh\n"$@" & wait; exit\n')
        (tmp_path / "tini").chmod(0o755)
        command = [str(tmp_path / "tini"), *command]
    with server.log_path.open("ab") as log:
        server.process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command],
            cwd=ROOT,
            env=server.environment,
            stderr=log,
        )
    try:
        until(server._ready, "the server is ready")
        outside = run_program("upgrade", environment=server.environment)
        assert outside.returncode == 1
        assert "in its container" in outside.stderr
        inner = _descendant(server.process.pid, "serve")
        container = ["nsenter", "--target", str(inner), "--pid", "--mount", f"--wd={ROOT}"]
        inside = run_program("upgrade", environment=server.environment, within=container)
        assert inside.returncode == 1
        assert "the container would end with it" in inside.stderr
        os.kill(inner, signal.SIGUSR2)
        until(lambda: any(line["event"] == "upgrade_refused" for line in server.log_lines()), "it is refused")
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        os.kill(inner, signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
    finally:
        server.kill()
    server.check_log()


@pytest.mark.slow
@pytest.mark.netns
def test_a_server_in_a_user_namespace_as_in_the_unit_is_upgraded_by_its_user(tmp_path: Path) -> None:
    server = ServerProcess(state_dir=tmp_path / "state")
    with server.log_path.open("ab") as log:
        server.process = subprocess.Popen(
            [sys.executable, "-c", _IN_A_USER_NAMESPACE, sys.executable, "main.py", "serve"],
            cwd=ROOT,
            env=server.environment,
            stderr=log,
        )
    served_by = pid = server.process.pid
    try:
        own = os.readlink("/proc/self/ns/user")
        until(lambda: os.readlink(f"/proc/{pid}/ns/user") != own, "the namespace is made")
        for table in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{table}").write_text("0 0 65536")
        until(server._ready, "the server is ready")
        upgraded = subprocess.run(
            [
                "setpriv",
                "--bounding-set=-sys_ptrace",
                "--inh-caps=-sys_ptrace",
                sys.executable,
                "main.py",
                "upgrade",
            ],
            cwd=ROOT,
            env=server.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert upgraded.returncode == 0, upgraded.stderr
        served_by = int((server.state_dir / "lock").read_text())
        assert served_by != pid
        assert httpx.get(f"{server.url}/healthz").status_code == 200
    finally:
        for process in {pid, served_by}:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        server.process.wait(timeout=60)
        until(lambda: not _is_there(served_by), "the server has ended")
    server.check_log()


@pytest.mark.parametrize("handles", [True, False])
def test_a_process_that_does_not_use_the_state_directory_is_sent_no_signal(
    handles: bool, tmp_path: Path
) -> None:
    server = ServerProcess(state_dir=tmp_path / "state")
    server.start()
    trap = "trap 'echo no; exit 1' USR2; " if handles else ""
    with subprocess.Popen(
        ["sh", "-c", f"{trap}echo yes; read _"], stdin=-1, stdout=-1, text=True
    ) as stranger:
        try:
            assert stranger.stdout
            assert stranger.stdout.readline() == "yes\n"
            (server.state_dir / "lock").write_text(f"{stranger.pid:<20}\n")
            with pytest.raises(AssertionError, match="is not visible"):
                server.command("upgrade")
            out, _ = stranger.communicate("\n")
            assert (stranger.returncode, out) == (0, "")
        finally:
            stranger.kill()
            server.stop()
    server.check_log()


def _is_there(pid: int) -> bool:
    """Return whether a process runs; one that has ended and is not yet waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _descendant(pid: int, word: str) -> int:
    """Return the last descendant of a process whose command line has that word."""
    found = pid
    while children := Path(f"/proc/{found}/task/{found}/children").read_text().split():
        found = int(children[0])
    assert word.encode() in Path(f"/proc/{found}/cmdline").read_bytes()
    return found
