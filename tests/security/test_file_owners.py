"""Keys, databases and the state directory: what another user could have put there or could read is not used.

Each refusal is one line that names the file and the command that mends it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sse_app.auth.tokens.issuer import TokenKind
from tests.support.people import Site, site
from tests.support.server_process import ROOT, ServerProcess, clean_environment, run_program
from tests.support.waiting import until

STRANGER = 65_534  # nobody
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to another user")


def run(state: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a state directory."""
    environment = clean_environment(SSE_APP_STATE_DIR=str(state), SSE_APP_PORT="0", **settings)
    return run_program(*arguments, environment=environment)


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of a command that was refused."""
    assert done.returncode == 1, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def mended(state: Path, line: str, **settings: str) -> None:
    """Do what the line says, and check that the server would start then."""
    command = re.search(r"(chmod \S+ \S+|chown (-R )?\S+ \S+)", line)
    assert command is not None, line
    subprocess.run(command[0].rstrip(",").split(), check=True)
    done = run(state, "keys", **settings)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory in which everything is there."""
    directory = tmp_path / "state"
    with ServerProcessOnce(directory):
        pass
    return directory


class ServerProcessOnce:
    """Starts a server and ends it, so that there is a state."""

    def __init__(self, state: Path) -> None:
        self._server = ServerProcess(state_dir=state)

    def __enter__(self) -> None:
        self._server.start()

    def __exit__(self, *exception: object) -> None:
        assert self._server.stop() == 0


OPEN: dict[str, Callable[[Path], Path]] = {
    "keys 0777": lambda state: chmod(state / "keys", 0o777),
    "keys 0770": lambda state: chmod(state / "keys", 0o770),
    "keys 1777": lambda state: chmod(state / "keys", 0o1777),
    "a key 0644": lambda state: chmod(state / "keys/first.hs256", 0o644),
    "a key 0640": lambda state: chmod(state / "keys/first.hs256", 0o640),
    "a key 0660": lambda state: chmod(state / "keys/first.hs256", 0o660),
    "accounts 0644": lambda state: chmod(state / "accounts.db", 0o644),
    "events 0666": lambda state: chmod(state / "events.db", 0o666),
}
FOREIGN: dict[str, Callable[[Path], Path]] = {
    "state": lambda state: chown(state),
    "keys": lambda state: chown(state / "keys"),
    "a key": lambda state: chown(state / "keys/first.hs256"),
    "accounts": lambda state: chown(state / "accounts.db"),
    "events": lambda state: chown(state / "events.db"),
    "lock": lambda state: chown(state / "lock"),
}


def chmod(path: Path, mode: int) -> Path:
    path.chmod(mode)
    return path


def chown(path: Path) -> Path:
    os.chown(path, STRANGER, STRANGER)
    return path


def linked(path: Path) -> Path:
    """Put a link in the place of a file, to where that is now."""
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    return path


@pytest.mark.slow
def test_what_others_can_read_or_write_is_refused_with_the_command_that_mends_it(state: Path) -> None:
    for name, spoil in OPEN.items():
        path = spoil(state)
        line = told(run(state, "serve"))
        assert str(path) in line, name
        mended(state, line)


@pytest.mark.slow
@as_root
def test_what_belongs_to_another_user_is_refused_with_the_command_that_mends_it(state: Path) -> None:
    for name, spoil in FOREIGN.items():
        path = spoil(state)
        line = told(run(state, "serve"))
        assert str(path) in line, name
        assert "nobody" in line or str(STRANGER) in line
        mended(state, line)


def test_a_link_in_the_place_of_a_file_is_not_followed(state: Path) -> None:
    for name in ("accounts.db", "events.db", "keys/first.hs256", "lock"):
        path = linked(state / name)
        line = told(run(state, "serve"))
        assert str(path) in line
        assert "link" in line
        target = path.readlink()
        path.unlink()
        target.rename(path)
    for name in ("accounts.db", "events.db-wal"):  # nor is a file made where a link leads
        path = state / name
        path.unlink(missing_ok=True)
        path.symlink_to(state.parent / "made")
        assert str(path) in told(run(state, "serve"))
        assert not (state.parent / "made").exists()
        path.unlink()


def test_a_pipe_or_a_directory_in_the_place_of_a_file_is_refused_and_not_waited_for(state: Path) -> None:
    os.mkfifo(state / "keys/second.hs256", 0o600)
    assert "second.hs256" in told(run(state, "serve"))
    (state / "keys/second.hs256").unlink()
    (state / "keys/third.pem").mkdir()
    assert "third.pem is not a file" in told(run(state, "serve"))
    (state / "keys/third.pem").rmdir()
    (state / "lock").unlink()
    os.mkfifo(state / "lock", 0o600)
    assert "lock" in told(run(state, "serve"))


@as_root
def test_root_leaves_no_file_in_the_directory_of_the_service_s_user(state: Path) -> None:
    subprocess.run(["chown", "-R", str(STRANGER), str(state)], check=True)
    before = sorted(state.rglob("*"))
    for command in (["user", "list"], ["keys", "rotate"], ["token", "--subject", "ann"], ["audit"]):
        line = told(run(state, *command))
        assert "runuser -u " in line
    assert sorted(state.rglob("*")) == before
    assert all(path.stat().st_uid == STRANGER for path in before)


_AS_ANOTHER = """
import os, sys
from pathlib import Path
from sse_app.core.errors import StateError
from sse_app.storage.state_dir import StateDirectory
os.setgroups([]); os.setgid(65_534); os.setuid(65_534)
for path in sys.argv[1:]:
    try:
        StateDirectory(Path(path))
        print("taken")
    except StateError as error:
        print(error)
"""


@as_root
def test_a_volume_that_is_ours_to_write_and_another_user_s_is_named_with_the_way_out() -> None:
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        volume = Path(folder) / "volume"
        volume.mkdir()
        volume.chmod(0o2775)
        os.chown(volume, 0, STRANGER)
        done = subprocess.run(
            [sys.executable, "-c", _AS_ANOTHER, str(volume), str(volume / "state"), str(volume)],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        first, second, third = done.stdout.splitlines()
        assert f"{volume} belongs to root" in first
        assert str(volume / "state") in first
        assert second == "taken"
        assert (volume / "state").stat().st_mode & 0o777 == 0o700
        assert first == third


_LOOKS_AS_ANOTHER = """
import os, sys
from pathlib import Path
from sse_app import Settings
from sse_app.core.errors import StateError
from sse_app.process.dry_run import try_start
from sse_app.storage.state_dir import StateDirectory
"localhost".encode("idna")  # loads the module, which that user may not be able to read
os.setgroups([]); os.setgid(65_534); os.setuid(65_534)
path = Path(sys.argv[1])
print(*try_start(Settings(state_dir=path, port=0))[1], sep="\\n")
try:
    StateDirectory(path, create=False)
except StateError as error:
    print(error)
"""


@as_root
def test_a_command_of_another_user_says_whose_the_state_is_and_not_that_there_is_none() -> None:
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        state = Path(folder) / "state"
        with ServerProcessOnce(state):
            pass
        done = subprocess.run(
            [sys.executable, "-c", _LOOKS_AS_ANOTHER, str(state)],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        first, *others, last = done.stdout.splitlines()
        assert f"the state directory {state} belongs to root" in first
        assert others
        assert all("Permission denied" in line for line in others)
        assert last == first


def test_a_linked_state_directory_works_if_the_link_is_ours(state: Path) -> None:
    """As with DynamicUser=, where /var/lib/NAME is root's link to /var/lib/private/NAME."""
    link = state.parent / "link"
    link.symlink_to(state)
    assert run(link, "keys").returncode == 0
    if os.geteuid() == 0:
        os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
        assert "link" in told(run(link, "serve"))


def test_a_directory_of_keys_that_is_not_there_is_an_error_and_no_new_key(
    tmp_path: Path, state: Path
) -> None:
    for keys in (tmp_path / "absent", tmp_path / "absent/deeper"):
        for command in ("serve", "keys", "token"):
            more = ["--subject", "ann"] if command == "token" else []
            line = told(run(state, command, *more, SSE_APP_AUTH__KEYS_DIR=str(keys)))
            assert str(keys) in line
            assert "auth.keys_dir" in line
        assert not keys.exists()


def test_keys_as_systemd_and_kubernetes_hand_them_over_are_taken(tmp_path: Path, state: Path) -> None:
    """LoadCredential= gives files of root, 0440 with an access control list, or the user's own, 0400."""
    secret = (state / "keys/first.hs256").read_bytes()
    for mode in (0o440, 0o400) if os.geteuid() == 0 else (0o400,):
        keys = tmp_path / f"credentials-{mode:o}"
        keys.mkdir()
        (keys / "first.hs256").write_bytes(secret)
        (keys / "first.hs256").chmod(mode)
        keys.chmod(0o550)
        done = run(state, "keys", SSE_APP_AUTH__KEYS_DIR=str(keys))
        assert done.stdout == "first HS256 signs\n", done.stderr
    keys = tmp_path / "secrets"
    version = keys / "..2026_01_01"
    version.mkdir(parents=True, mode=0o755)
    (version / "first.hs256").write_bytes(secret)
    (version / "first.hs256").chmod(0o400)
    (keys / "..data").symlink_to(version.name)
    (keys / "first.hs256").symlink_to("..data/first.hs256")
    done = run(state, "keys", SSE_APP_AUTH__KEYS_DIR=str(keys))
    assert done.stdout == "first HS256 signs\n", done.stderr
    (keys / "second.hs256").symlink_to(state / "keys/first.hs256")
    assert "second.hs256" in told(run(state, "keys", SSE_APP_AUTH__KEYS_DIR=str(keys)))


def test_a_reload_looks_again_and_keeps_what_was_in_force(tmp_path: Path) -> None:
    with site(tmp_path / "state", expected=("reload_refused", "keys_refused")) as desk:
        state, token = tmp_path / "state", desk.mint(TokenKind.ACCESS, "ann")
        spoilt = {"keys/first.hs256": 0o644, "keys": 0o777, "accounts.db": 0o666, "events.db": 0o640}
        for name, mode in spoilt.items():
            path = chmod(state / name, mode)
            refused = reload(desk, "reload_refused")
            assert str(path) in refused
            assert "chmod" in refused
            assert desk.me(token) == 200
            path.chmod(0o700 if path.is_dir() else 0o600)
        state.chmod(0o755)
        reload(desk, "reloaded")
        assert state.stat().st_mode & 0o777 == 0o700


def reload(desk: Site, event: str) -> str:
    """Have the server read its settings again, and return what it logs."""

    def logged() -> list[str]:
        return [str(line) for line in desk.server.log_lines() if line["event"] == event]

    before = len(logged())
    assert desk.server.process is not None
    desk.server.process.send_signal(1)
    until(lambda: len(logged()) > before, event)
    return logged()[-1]


def test_a_key_that_comes_to_a_running_server_is_looked_at_too(tmp_path: Path) -> None:
    with site(tmp_path / "state", expected=("keys_refused",)) as desk:
        token = desk.mint(TokenKind.ACCESS, "ann")
        planted = tmp_path / "state/keys/planted.hs256"
        planted.write_bytes(os.urandom(32))
        planted.chmod(0o644)
        until(lambda: "keys_refused" in desk.server.log_path.read_text(), "it is told")
        assert "chmod 600" in desk.server.log_path.read_text()
        assert desk.me(token) == 200
        time.sleep(1)  # the server looks four times a second
        assert desk.server.log_path.read_text().count("keys_refused") == 1
        planted.chmod(0o600)
        minted = desk.mint(TokenKind.ACCESS, "ann")  # with the new key
        until(lambda: desk.me(minted) == 200, "the key that was mended is in use")
        assert desk.me(token) == 200
