"""The state directory: one server alone, or several workers and their parent, and never both."""

from __future__ import annotations

import fcntl
import math
import os
from pathlib import Path

import pytest

from sse_app.core.errors import SettingsError, StateError
from sse_app.process.workers import WORKER_VARIABLE, worker_number
from sse_app.settings.model import Settings
from sse_app.settings.workers import processor_quota, worker_count
from sse_app.storage import state_dir
from sse_app.storage.state_dir import StateDirectory


def test_workers_share_the_directory_and_each_has_one_of_its_own(tmp_path: Path) -> None:
    first, second = (StateDirectory(tmp_path / "s", worker=number) for number in (1, 2))
    parent = StateDirectory(tmp_path / "s")
    assert parent.own == parent.path
    for one in (first, second):
        one.lock()
    parent.lock_for_parent()
    assert first.own == tmp_path / "s/workers/1"
    assert parent.running_workers() == {1: os.getpid(), 2: os.getpid()}
    assert parent.holder() == os.getpid()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "s").rglob("*")}
    assert modes == {"lock": 0o600, "workers": 0o700, "1": 0o700, "2": 0o700}
    for one in (first, second, parent):
        one.unlock()
    assert parent.running_workers() == {}
    assert parent.holder() is None


def test_a_server_alone_and_workers_keep_each_other_out(tmp_path: Path) -> None:
    alone, worker = StateDirectory(tmp_path / "s"), StateDirectory(tmp_path / "s", worker=1)
    refusal = rf"the state directory {tmp_path}/s is in use by another server \(process {os.getpid()}\)"
    alone.lock()
    assert alone.holder() == os.getpid()
    with pytest.raises(StateError, match=refusal):
        worker.lock()
    with pytest.raises(StateError, match=refusal):
        StateDirectory(tmp_path / "s").lock_for_parent()
    alone.unlock()
    worker.lock()
    assert worker.holder() is None
    with pytest.raises(StateError, match=refusal):
        alone.lock()
    with pytest.raises(StateError, match=rf"worker 1 of the .* runs already \(process {os.getpid()}\)"):
        StateDirectory(tmp_path / "s", worker=1).lock()
    worker.unlock()
    alone.lock()
    alone.unlock()


def test_a_second_parent_is_refused(tmp_path: Path) -> None:
    parent = StateDirectory(tmp_path / "s")
    parent.lock_for_parent()
    with pytest.raises(StateError, match=r"a parent of workers of the .* runs already"):
        StateDirectory(tmp_path / "s").lock_for_parent()
    with pytest.raises(StateError, match=rf"is in use by another server \(process {os.getpid()}\)"):
        StateDirectory(tmp_path / "s").lock()
    parent.unlock()


def test_locks_that_were_passed_on_are_kept_when_the_process_before_lets_them_go(tmp_path: Path) -> None:
    before, after = (StateDirectory(tmp_path / "s", worker=3) for _ in range(2))
    before.lock()
    after.take_locks([os.dup(descriptor) for descriptor in before.lock_descriptors])
    before.unlock()
    assert after.running_workers() == {3: os.getpid()}
    with pytest.raises(StateError):
        StateDirectory(tmp_path / "s").lock()
    after.unlock()


def test_one_process_at_a_time_makes_the_state_and_another_waits_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDirectory(tmp_path / "s")
    with state.starting():
        descriptor = os.open(tmp_path / "s", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        monkeypatch.setattr(state_dir, "STARTING_TIMEOUT", 0.05)
        with pytest.raises(StateError, match="another process has been starting"), state.starting():
            pass
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_a_process_that_looks_who_has_a_lock_is_not_taken_for_the_one_that_had_it(tmp_path: Path) -> None:
    worker = StateDirectory(tmp_path / "s", worker=1)
    worker.lock()
    worker.unlock()
    other = os.open(worker.own / "lock", os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_SH)  # as `running_workers` of another process has it for a moment
    assert StateDirectory(tmp_path / "s").running_workers() == {}
    os.close(other)


@pytest.mark.parametrize("text", ["0", "-1", "x", "257", "1.0", "²", " 1"])
def test_a_worker_without_a_number_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="SSE_APP_WORKER"):
        worker_number({WORKER_VARIABLE: text})


def test_the_number_of_workers_is_a_setting() -> None:
    assert worker_number({}) == 0
    assert worker_number({WORKER_VARIABLE: "12"}) == 12
    assert worker_count(Settings()) == 1
    assert worker_count(Settings(workers="3")) == 3  # type: ignore[arg-type]  # as from a variable
    assert 1 <= worker_count(Settings(workers="auto")) <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("outer", "inner", "cores"),
    [
        ("max 100000", "max 100000", math.inf),
        ("max 100000", "150000 100000", 1.5),
        ("200000 100000", "max 100000", 2),
        ("50000 100000", "400000 100000", 0.5),
        ("", "nonsense", math.inf),
    ],
)
def test_the_time_that_a_container_is_allowed_of_the_processors_counts_too(
    tmp_path: Path, outer: str, inner: str, cores: float
) -> None:
    group = tmp_path / "groups/outer/inner"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text(f"{inner}\n")
    (group.parent / "cpu.max").write_text(f"{outer}\n")
    membership = tmp_path / "cgroup"
    membership.write_text("1:name=systemd:/x\n0::/outer/inner\n")
    assert processor_quota(tmp_path / "groups", membership) == cores
    membership.write_text("0::/\n")  # the group at the top, as a container sees its own
    (tmp_path / "groups/cpu.max").write_text(f"{inner}\n")
    assert processor_quota(tmp_path / "groups", membership) == processor_quota(
        tmp_path / "groups/outer/inner", membership
    )
    assert processor_quota(tmp_path / "nowhere", tmp_path / "nothing") == math.inf


@pytest.mark.parametrize("value", [0, 257, "x", 1.5, True, []])
def test_a_bad_number_of_workers_is_named(value: object) -> None:
    with pytest.raises(
        SettingsError, match="bad value for the setting workers: expected int from 1 to 256 or auto"
    ):
        Settings(workers=value)  # type: ignore[arg-type]
