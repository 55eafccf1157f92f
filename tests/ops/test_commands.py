"""Commands called in a wrong directory, at a prompt, or before a start: what they make, ask and find out."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import socket
import stat
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from tests.support.server_process import PROGRAM, ROOT, ServerProcess, clean_environment, run_program
from tests.support.waiting import until

PASSWORD = "correct horse\n"


def run(folder: Path, *words: str, input: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return run_program(*words, environment=clean_environment(**variables), cwd=folder, input=input)


def _take_terminal() -> None:
    """Make the terminal that of the new session, so that Ctrl-C there is a signal; a background job may ignore it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def at_a_terminal(
    folder: Path,
    words: list[str],
    answers: list[tuple[str, str]],
    program: Sequence[str] = PROGRAM,
    **variables: str,
) -> tuple[int, str]:
    """Run a command at a terminal, type each answer once its question has come; return status and output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*program, *words],
        cwd=folder,
        env=clean_environment(**variables),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(theirs)
    said = typed = ""

    def more() -> bool:
        nonlocal said
        for _ in range(30):
            if select.select([ours], [], [], 2)[0]:
                break
            if typed == "\x03":  # Python misses one that comes just before it begins to read
                os.write(ours, b"\x03")
        else:
            raise AssertionError(said)
        try:
            part = os.read(ours, 4096).decode()
        except OSError:  # EIO: the other side is closed
            part = ""
        said += part
        return bool(part)

    try:
        for question, answer in answers:
            while question not in said:
                assert more(), said
            typed = answer
            os.write(ours, answer.encode())
        while more():
            pass
        return process.wait(60), said
    finally:
        process.kill()
        process.wait()
        os.close(ours)


NEED_STATE = [
    ["token"],
    pytest.param(["user"], marks=pytest.mark.slow),
    ["user", "list"],
    pytest.param(["user", "add", "ann", "--password-stdin"], marks=pytest.mark.slow),
    pytest.param(["user", "passwd", "ann", "--password-stdin"], marks=pytest.mark.slow),
    pytest.param(["user", "grants", "ann"], marks=pytest.mark.slow),
    pytest.param(["user", "disable", "ann"], marks=pytest.mark.slow),
    pytest.param(["user", "remove", "ann"], marks=pytest.mark.slow),
    ["publish", "alerts", "e", "{}"],
    pytest.param(["listen", "alerts"], marks=pytest.mark.slow),
    ["revoke", "--all"],
    pytest.param(["audit"], marks=pytest.mark.slow),
    pytest.param(["keys"], marks=pytest.mark.slow),
    pytest.param(["keys", "rotate"], marks=pytest.mark.slow),
    ["eventlog", "show"],
    pytest.param(["eventlog", "new-epoch"], marks=pytest.mark.slow),
    pytest.param(["upgrade"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize("words", NEED_STATE, ids=" ".join)
def test_a_command_in_a_wrong_directory_says_so_and_makes_nothing(tmp_path: Path, words: list[str]) -> None:
    done = run(tmp_path, *words, input=PASSWORD)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"sse-app: there is no state in {tmp_path / 'var'}: ")
    assert "--state-dir" in line
    assert "user add --init" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["token"], ["user", "add", "ann", "--init", "--password-stdin"], ["serve"]]
)
def test_a_directory_that_others_use_is_left_as_it_is(tmp_path: Path, words: list[str]) -> None:
    var = tmp_path / "var"  # as in /, where ./var is /var
    (var / "lib").mkdir(parents=True)
    (var / "lock").symlink_to(tmp_path)
    var.chmod(0o755)
    done = run(tmp_path, *words, input=PASSWORD, SSE_APP_PORT="0")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(var) in done.stderr
    assert stat.S_IMODE(var.stat().st_mode) == 0o755
    assert {path.name for path in var.iterdir()} == {"lib", "lock"}
    assert run(tmp_path, "check-config", SSE_APP_PORT="0").returncode == 1


@pytest.mark.parametrize("words", [["check-config"], pytest.param(["doctor"], marks=pytest.mark.slow)])
def test_a_command_that_only_looks_leaves_the_mode_of_the_state_directory(
    tmp_path: Path, words: list[str]
) -> None:
    state = tmp_path / "var"
    state.mkdir()
    for mode in (0o755, 0o777):
        state.chmod(mode)
        done = run(tmp_path, *words, SSE_APP_PORT="0")
        assert (done.returncode, done.stderr) == (0, "")
        assert (stat.S_IMODE(state.stat().st_mode), list(state.iterdir())) == (mode, [])
    assert run(tmp_path, "user", "add", "ann", "--init", "--password-stdin", input=PASSWORD).returncode == 0
    files = {path.name for path in state.iterdir()}
    for mode in (0o755, 0o777):
        state.chmod(mode)
        done = run(tmp_path, *words, SSE_APP_PORT="0")
        assert (done.returncode, done.stderr) == (0, "")
        assert (stat.S_IMODE(state.stat().st_mode), {path.name for path in state.iterdir()}) == (mode, files)


def test_state_that_user_add_begins_is_what_the_server_and_the_other_commands_use(tmp_path: Path) -> None:
    added = run(tmp_path, "user", "add", "ann", "--init", "--password-stdin", input=PASSWORD)
    assert (added.returncode, added.stderr) == (0, "")
    token = run(tmp_path, "token", "--subscribe", "dashboard").stdout.strip()
    assert run(tmp_path, "user").stdout == "ann\n"
    server = ServerProcess(state_dir=tmp_path / "var")
    try:
        server.start()
        me = httpx.get(f"{server.url}/api/v1/auth/me", headers={"Authorization": f"Bearer {token}"})
        assert me.status_code == 200
        assert server.stop() == 0
    finally:
        server.kill()
    again = run(tmp_path, "user", "add", "bob", "--init", "--password-stdin", input=PASSWORD)
    assert (again.returncode, again.stderr) == (0, "")
    assert run(tmp_path, "user").stdout == "ann\nbob\n"


@pytest.mark.parametrize(
    ("words", "input", "reason"),
    [
        (["ann"], "short\n", "a password has 8"),
        (["-ann" * 30], PASSWORD, "a user name is"),
        (
            ["ann", "--subscribe", ",".join(f"channel.{number}.{'x' * 60}" for number in range(300))],
            PASSWORD,
            "a token that grants all",
        ),
    ],
)
def test_an_account_that_cannot_be_made_begins_no_state(
    tmp_path: Path, words: list[str], input: str, reason: str
) -> None:
    added = run(
        tmp_path, "user", "add", "--init", "--password-stdin", *words[1:], "--", words[0], input=input
    )
    assert added.returncode == 1
    assert added.stderr.splitlines()[-1].startswith(f"sse-app: {reason}")
    assert list(tmp_path.iterdir()) == []


def test_a_state_directory_that_is_a_file_is_named_as_such_once(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("")
    for command in ("check-config", "serve"):
        lines = run(tmp_path, command, SSE_APP_PORT="0").stderr.splitlines()
        assert len([line for line in lines if line.endswith("var: it is not a directory")]) == 1


@pytest.mark.slow
def test_at_a_terminal_user_add_asks_before_it_begins_new_state(tmp_path: Path) -> None:
    question = f"there is no state in {tmp_path / 'var'} yet; begin a new one there? [y/N] "
    words = ["user", "add", "ann"]
    status, said = at_a_terminal(tmp_path, words, [(question, "\n")])
    assert status == 1
    assert "password" not in said
    assert list(tmp_path.iterdir()) == []
    answers = [(question, "y\n"), ("password: ", PASSWORD), ("the same again: ", PASSWORD)]
    assert at_a_terminal(tmp_path, words, answers)[0] == 0
    assert run(tmp_path, "user").stdout == "ann\n"


@pytest.mark.slow
@pytest.mark.parametrize(("key", "status"), [("\x04", 1), ("\x03", 130)], ids=["Ctrl-D", "Ctrl-C"])
def test_ctrl_d_and_ctrl_c_at_a_prompt_end_a_command_without_a_traceback(
    tmp_path: Path, key: str, status: int
) -> None:
    begun = run(tmp_path, "user", "add", "ann", "--init", "--password-stdin", input=PASSWORD)
    assert begun.returncode == 0
    for words, answers in (
        (["user", "passwd", "ann"], [("password: ", key)]),
        (["user", "passwd", "ann"], [("password: ", PASSWORD), ("the same again: ", key)]),
        (["user", "add", "bob", "--state-dir", "new"], [("[y/N] ", key)]),
    ):
        ended, said = at_a_terminal(tmp_path, words, answers)
        assert "Traceback" not in said, said
        assert ended == status, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "input"),
    [
        (["user", "passwd", "ann", "--password-stdin"], b""),
        (["user", "passwd", "ann", "--password-stdin"], b"\xff\xfe secret\n"),
        (["publish", "alerts", "e", "-"], b"\xff"),
        (["publish", "alerts", "e", "--token-stdin", "{}"], b""),
        (["publish", "alerts", "e", "--token-stdin", "{}"], b"\xff\n"),
        (["listen", "alerts", "--token-stdin"], b"\n"),
    ],
)
def test_input_that_will_not_do_is_told_in_one_line(tmp_path: Path, words: list[str], input: bytes) -> None:
    assert run(tmp_path, "user", "add", "ann", "--init", "--password-stdin", input=PASSWORD).returncode == 0
    done = subprocess.run(
        [*PROGRAM, *words],
        cwd=tmp_path,
        env=clean_environment(PYTHONUTF8="1"),
        input=input,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert len(done.stderr.decode().splitlines()) == 1, done.stderr.decode()


def test_a_grant_that_no_channel_of_the_settings_fits_is_warned_of(tmp_path: Path) -> None:
    def warned(*words: str) -> list[str]:
        done = run(tmp_path, *words, input=PASSWORD)
        assert done.returncode == 0, done.stderr
        return done.stderr.splitlines()

    begin = ["user", "add", "ann", "--init", "--password-stdin"]
    warning = "sse-app: warning: the settings have no channel that {} covers"
    assert warned(*begin, "--subscribe", "dashbord,alerts", "--publish", "desk.**") == [
        f"{warning.format('dashbord')} (did you mean dashboard?)",
        warning.format("desk.**"),
    ]
    assert warned("user", "grants", "ann", "--publish", "alert") == [
        f"{warning.format('alert')} (did you mean alerts?)"
    ]
    assert warned("token", "--subscribe", "dashboard.eu") == [
        f"{warning.format('dashboard.eu')} (did you mean dashboard?)"
    ]
    good = "**,*,dashboard,dashboard.**,user.*.orders,*.ann,user,user.**,*.*.**"
    assert warned("token", "--subscribe", good, "--publish", good) == []
    assert warned("token", "--subscribe", "desk.a", "--set", 'channels=["desk.*"]') == []


def test_check_config_tries_what_a_start_would_and_changes_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "check-config", SSE_APP_PORT="0", SSE_APP_SITE="x")
    assert (done.returncode, done.stderr) == (0, "")
    assert "passed over in the environment: SSE_APP_SITE" in done.stdout
    assert f"# state directory: {tmp_path / 'var'} is not there yet; the start makes it" in done.stdout
    assert list(tmp_path.iterdir()) == []
    grants = '{"desk": {"subscribe": ["dashbord"]}}'
    done = run(tmp_path, "check-config", SSE_APP_PORT="0", SSE_APP_OIDC__GRANTS=grants)
    assert done.returncode == 0
    assert "oidc.grants.desk" in done.stderr


def test_check_config_shows_the_tables_of_channels_and_warns_of_those_that_never_count(
    tmp_path: Path,
) -> None:
    channels = '["user.**", {"pattern": "**", "public": true}, {"pattern": "news", "history_age": 60}]'
    done = run(tmp_path, "check-config", SSE_APP_PORT="0", SSE_APP_CHANNELS=channels)
    assert done.returncode == 0
    assert "{'pattern': '**', 'public': True}" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line == (
        "sse-app: warning: channels[2] (news) never counts: channels[1] (**) comes first and covers it"
    )
    channels = '[{"pattern": "**", "public": true}]'
    done = run(tmp_path, "check-config", SSE_APP_PORT="0", SSE_APP_CHANNELS=channels)
    assert done.returncode == 0
    assert "channels[0] (**) is public" in done.stderr
    done = run(tmp_path, "check-config", SSE_APP_CHANNELS='["a", {"pattern": "b", "history_age": 0}]')
    assert done.returncode == 1
    assert done.stderr.startswith("sse-app: bad value for the setting channels[1].history_age: ")


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"SSE_APP_HOST": "192.0.2.1"}, "192.0.2.1"),
        pytest.param({"SSE_APP_HOST": "nowhere.invalid"}, "nowhere.invalid", marks=pytest.mark.slow),
        pytest.param({"SSE_APP_HOST": "a..b"}, "a..b", marks=pytest.mark.slow),
        pytest.param({"SSE_APP_HOST": "x" * 300}, "x" * 300, marks=pytest.mark.slow),
        ({"SSE_APP_STATE_DIR": "file"}, "file"),
        pytest.param({"SSE_APP_STATE_DIR": "file/below"}, "file/below", marks=pytest.mark.slow),
        ({"SSE_APP_AUTH__KEYS_DIR": "badkeys"}, "badkeys/weak.hs256"),
        pytest.param({"SSE_APP_EVENT_LOG": "sqlite:file"}, "file", marks=pytest.mark.slow),
        ({"SSE_APP_EVENT_LOG": "sqlite:other.db"}, "other.db"),
        pytest.param(
            {"SSE_APP_EVENT_LOG": "sqlite:nowhere/events.db"}, "nowhere/events.db", marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_what_would_stop_a_start_is_found_by_check_config(
    tmp_path: Path, variables: dict[str, str], names: str
) -> None:
    import sqlite3

    (tmp_path / "file").write_text("not a database, " * 100)
    (tmp_path / "badkeys").mkdir(mode=0o700)
    (tmp_path / "badkeys/weak.hs256").write_bytes(b"weak")
    (tmp_path / "badkeys/weak.hs256").chmod(0o600)
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE theirs (a)")
    database.close()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for command in ("check-config", "serve"):
        done = run(tmp_path, command, **{"SSE_APP_PORT": "0", **variables})
        assert done.returncode == 1, done.stderr
        told = [line for line in done.stderr.splitlines() if line.startswith("sse-app: ")]
        assert any(names in line for line in told), done.stderr
        assert "Traceback" not in done.stderr
        if command == "check-config":
            assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_check_config_does_not_disturb_a_server_that_runs_there(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as http:
        token = server.stream_token("dashboard")
        with http.stream("GET", server.stream_url("dashboard", token)) as stream:
            said = server.command("check-config")
            assert server.process is not None
            pid = server.process.pid
            assert f"is in use by process {pid}\n" in said
            assert (
                f"# address: 127.0.0.1:{server.port} is in use by process {pid}, the server of this state"
                in said
            )
            assert http.get("/readyz").status_code == 200
            assert stream.status_code == 200


def test_check_config_says_who_else_uses_the_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(tmp_path, "check-config", SSE_APP_PORT=str(port))
        assert done.returncode == 1
        assert (
            f"cannot listen on 127.0.0.1:{port}: Address already in use (process {os.getpid()}, "
            in done.stderr
        )
        taken.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody has connected to find out
            taken.accept()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::", ["127.0.0.1", "::1"]),
        ("0::0", ["127.0.0.1", "::1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("localhost", ["127.0.0.1"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_address_says_where_it_answers(tmp_path: Path, host: str, reached: list[str]) -> None:
    if "::1" in reached and not _has_ipv6():
        pytest.skip("there is no IPv6 here")
    server = ServerProcess(state_dir=tmp_path / "state", HOST=host, METRICS__ALLOW=["127.0.0.0/8"])
    with server.log_path.open("ab") as log:
        process = subprocess.Popen([*PROGRAM, "serve"], cwd=ROOT, env=server.environment, stderr=log)
    try:
        until(lambda: "listening" in server.log_path.read_text() or process.poll() is not None, "it listens")
        found = []
        for address in ("127.0.0.1", "::1"):
            url = f"http://[{address}]" if ":" in address else f"http://{address}"
            try:
                answer = httpx.get(f"{url}:{server.port}/metrics", timeout=30)
            except httpx.ConnectError:
                continue
            found.append(address)
            assert answer.status_code == (200 if address == "127.0.0.1" else 403)
        assert set(found) >= set(reached)
        if host != "localhost":
            assert found == reached
        until(lambda: _addresses_logged(server) == found, "the requests are logged")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_an_ipv4_client_of_a_socket_of_both_families_has_its_ipv4_address(tmp_path: Path) -> None:
    if not _has_ipv6():
        pytest.skip("there is no IPv6 here")
    server = ServerProcess(state_dir=tmp_path / "state", METRICS__ALLOW=["127.0.0.0/8"])
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True);"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
            "os.execv(sys.executable, [sys.executable, 'main.py', 'serve'])"
        )
        with server.log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", script, str(both.fileno())],
                cwd=ROOT,
                env=server.environment,
                pass_fds=[both.fileno()],
                stderr=log,
            )
        port = both.getsockname()[1]
    try:
        assert httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).status_code == 200
        assert httpx.get(f"http://[::1]:{port}/metrics", timeout=30).status_code == 403
        until(lambda: _addresses_logged(server) == ["127.0.0.1", "::1"], "the requests are logged")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def _addresses_logged(server: ServerProcess) -> list[object]:
    return [line["address"] for line in server.log_lines() if line["event"] == "request"]


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("words", [["check-config"], pytest.param(["serve"], marks=pytest.mark.slow)])
def test_a_database_password_is_shown_in_no_form_of_its_address(tmp_path: Path, words: list[str]) -> None:
    database = "nowhere.invalid/events"
    for event_log in (
        "host=db user=sse password=hunter2",
        "host=db user=sse password = 'much \\'longer hunter2' port=5",
        "postgresql:/sse:hunter2@db/events",
        f"postgresql://sse@{database}?sslpassword=hunter2&sslmode=require",
        f"postgresql://sse:hunter2@{database}",
        f"postgresql://sse:other@hunter2@{database}",
        f"postgresql://sse:hunter2@other@{database}",
        f"postgresql://sse:hunter2/other@{database}",
        f"postgresql://sse:80/hunter2@{database}",
        f"postgresql://sse:@/hunter2@{database}",
        f"postgresql://sse@site:hunter2@{database}",
        "postgresql://nowhere.invalid:5432/events?password=other@hunter2",
        '{"password": "hunter2"}',
    ):
        done = run(tmp_path, *words, SSE_APP_EVENT_LOG=event_log, SSE_APP_PORT="0")
        assert done.returncode == 1, event_log
        assert "hunter2" not in done.stdout + done.stderr, event_log
        assert "event_log" in done.stdout + done.stderr or "database" in done.stderr, event_log
