"""Processes forked from the one that has loaded the program are what ordinary ones are."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests.support.preloaded import PROGRAM, ROOT, start
from tests.support.server_process import ServerProcess, clean_environment, running
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("words", "input", "status"),
    [
        pytest.param(["--version"], "", 0, marks=pytest.mark.slow),
        (["keys", "--no-such-flag"], "", 2),
        pytest.param(["user", "list"], "", 1, marks=pytest.mark.slow),
        (["user", "add", "ann", "--init", "--password-stdin"], "correct horse\n", 0),
        pytest.param(["user", "add", "ann", "--init", "--password-stdin"], "", 1, marks=pytest.mark.slow),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else repr(value),
)
def test_a_command_does_the_same(tmp_path: Path, words: list[str], input: str, status: int) -> None:
    environment = clean_environment(SSE_APP_STATE_DIR="state")  # below the directory in which it runs
    found = []
    for kind in ("forked", "ordinary"):
        cwd = tmp_path / kind
        cwd.mkdir()
        streams: dict[str, Any] = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}
        with (
            start(words, environment=environment, cwd=cwd, **streams)
            if kind == "forked"
            else subprocess.Popen([*PROGRAM, *words], env=environment, cwd=cwd, **streams)
        ) as process:
            printed = [
                text.replace(bytes(cwd), b"") for text in process.communicate(input.encode(), timeout=60)
            ]
        files = sorted(str(path.relative_to(cwd)) for path in cwd.rglob("*"))
        found.append((process.returncode, printed, files))
    assert found[0] == found[1]
    assert found[0][0] == status


def test_a_server_is_a_child_that_signals_end(tmp_path: Path) -> None:
    with running(state_dir=tmp_path / "state") as server:
        assert server.process is not None
        parent = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()[1]
        assert int(parent) == os.getpid()
        server.kill()
        assert server.process.returncode == -signal.SIGKILL
        server.start()
    assert server.process.returncode == 0


@pytest.mark.slow
def test_it_has_no_files_but_its_own(tmp_path: Path) -> None:
    def files(server: ServerProcess) -> list[str]:
        assert server.process is not None
        targets = []
        for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                targets.append(os.readlink(link))
        kinds = sorted(target.replace(str(tmp_path), "").partition(":")[0] for target in targets)
        return [kind.replace("/forked", "").replace("/ordinary", "").partition(".")[0] for kind in kinds]

    with (
        running(state_dir=tmp_path / "forked/state") as forked,
        running(state_dir=tmp_path / "ordinary/state", open_files=1000) as ordinary,
    ):
        until(lambda: files(forked) == files(ordinary), "their files are alike, once no connection is open")


def test_with_a_variable_that_the_interpreter_reads_at_its_start_it_is_an_ordinary_one(
    tmp_path: Path,
) -> None:
    environment = clean_environment(PYTHONVERBOSE="1")
    with start(["--version"], environment=environment, stdout=PIPE, stderr=PIPE) as process:
        _, complained = process.communicate(timeout=60)
    assert b"import 'sse_app'" in complained
    assert str(ROOT).encode() in complained
