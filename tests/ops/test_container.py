"""A container: the Containerfile is built step by step in Debian, and what it makes runs as process 1, and how."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest

from tests.support.container import Container, Image, build, container, debian, instructions
from tests.support.ports import reserved_port
from tests.support.server_process import ROOT, clean_environment
from tests.support.waiting import until

CONTAINERFILE = ROOT / "Containerfile"
USER = "10001"

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare"),
]


def test_the_containerfile_copies_what_is_there_and_the_engine_is_given() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    given = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    left_out = [line for line in ignored if line and not line.startswith(("!", "#"))]
    assert "*" in left_out
    copied = [
        source
        for step in instructions(CONTAINERFILE.read_text())
        if step.name == "COPY" and "from" not in step.flags
        for source in step.words[:-1]
    ]
    assert sorted(copied) == sorted(given)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert [name for name in copied if any(fnmatch(name, line) for line in left_out[1:])] == []


def test_the_containerfile_ends_as_a_user_with_a_number_and_no_shell_between() -> None:
    last: dict[str, str] = {step.name: step.rest for step in instructions(CONTAINERFILE.read_text())}
    assert last["USER"] == f"{USER}:{USER}"
    assert last["ENTRYPOINT"].startswith("[")
    assert last["CMD"].startswith("[")
    assert last["STOPSIGNAL"] == "SIGTERM"


@pytest.mark.long
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_as_process_1_it_takes_signals_drains_and_leaves_no_zombies(tmp_path: Path, workers: int) -> None:
    with reserved_port() as port:
        environment = clean_environment(
            SSE_APP_PORT=str(port),
            SSE_APP_STATE_DIR=str(tmp_path / "state"),
            SSE_APP_WORKERS=str(workers),
            SSE_APP_STREAM__DRAIN_TIME="0.2",
        )
        with (tmp_path / "log").open("w") as log:
            starter = subprocess.Popen(
                [
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *(sys.executable, str(ROOT / "main.py"), "serve"),
                ],
                env=environment,
                stderr=log,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: is_ready(url), f"the server is ready; its log is {tmp_path / 'log'}")
            (first,) = children_of(starter.pid)
            in_it = ["nsenter", "--target", str(first), "--mount", "--pid"]
            subprocess.run([*in_it, "sh", "-c", "(sleep 0.2 &); (sleep 0.2 &)"], check=True)
            own = workers if workers > 1 else 0
            until(lambda: len(children_of(first)) == own, "what was left behind has ended, and is no zombie")
            os.kill(first, signal.SIGUSR2)  # an upgrade, which would end the container
            os.kill(first, signal.SIGHUP)
            token = subprocess.run(
                [sys.executable, str(ROOT / "main.py"), "token", "--kind", "stream", "--subscribe", "alerts"],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            with httpx.stream("GET", f"{url}/api/v1/sse/alerts", params={"token": token}) as stream:
                lines = stream.iter_lines()
                assert "event: connected" in lines
                os.kill(first, signal.SIGTERM)
                assert "event: closing" in lines
                assert '"reason":"shutdown"' in next(lines)
            assert starter.wait(60) == 0
        finally:
            starter.kill()
            starter.wait()
        log_text = (tmp_path / "log").read_text()
        assert '"reloaded"' in log_text
        assert ("upgrade_refused" in log_text) == (workers == 1)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image that the Containerfile makes."""
    folder = tmp_path_factory.mktemp("images")
    yield build(CONTAINERFILE, ROOT, debian(folder / "debian"), folder)
    shutil.rmtree(folder)


@pytest.fixture
def volume(tmp_path: Path, image: Image) -> Path:
    """A new volume: it has the content, the owner and the mode that the image's folder has."""
    folder = tmp_path / "volume"
    subprocess.run(["cp", "-a", str(image.root / image.volumes[0].lstrip("/")), str(folder)], check=True)
    for (
        parent
    ) in folder.parents:  # the user of the container gets there by a mount, but commands of the tests walk
        if parent.is_relative_to(tmp_path):
            parent.chmod(0o755)
    return folder


def run_in(running: Container, *words: str, input: str = "") -> str:
    done = running.execute([*running.image.entrypoint, *words])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.long
@pytest.mark.parametrize("user", ["", "23456:0"], ids=["the image's user", "another user"])
def test_a_container_serves_on_a_read_only_root_keeps_its_state_and_drains(
    image: Image, volume: Path, tmp_path: Path, user: str
) -> None:
    with reserved_port(everywhere=True) as port:
        url = f"http://127.0.0.1:{port}"
        log = tmp_path / "log"
        with container(image, volume, log, user=user, SSE_APP_PORT=str(port)) as running:
            until(lambda: is_ready(url), f"the server is ready; its log is {log}")
            status = Path(f"/proc/{running.pid}/status").read_text()
            assert f"NSpid:\t{running.pid}\t1\n" in status
            uid, _, gid = (user or image.user).partition(":")
            assert f"Uid:\t{uid}\t{uid}" in status
            assert f"Gid:\t{gid}\t{gid}" in status
            assert "CapEff:\t0000000000000000" in status
            if not user:
                assert running.execute(image.health).returncode == 0
                assert running.execute(["touch", "/opt/sse_app/x"]).returncode != 0
                assert running.execute(["touch", f"{image.volumes[0]}/x"]).returncode == 0
                id = run_in(running, "publish", "alerts", "risk_alert", '{"severity": "low"}')
                token = run_in(running, "token", "--kind", "stream", "--subscribe", "alerts")
                assert "failure" not in run_in(running, "doctor", "--url", url)
                query = {"token": token, "last": "1"}
                with httpx.stream("GET", f"{url}/api/v1/sse/alerts", params=query) as stream:
                    lines = stream.iter_lines()
                    assert f"id: {id}" in lines
                    os.kill(running.pid, getattr(signal, image.stop_signal))
                    assert "event: closing" in lines
            else:
                os.kill(running.pid, getattr(signal, image.stop_signal))
            assert running.starter.wait(60) == 0
        state = volume / "state"
        assert (state.stat().st_mode & 0o777, state.stat().st_uid) == (0o700, int(uid))
        with container(image, volume, log, user=user, SSE_APP_PORT=str(port)) as again:
            until(lambda: is_ready(url), f"the server is ready again; its log is {log}")
            if not user:
                shown = run_in(again, "eventlog", "show")
                epoch, _, number = id.rpartition("-")
                assert shown.startswith(f"epoch {epoch}\nhead {number}\n")
            os.kill(again.pid, signal.SIGTERM)
            assert again.starter.wait(60) == 0


@pytest.mark.long
def test_a_volume_that_its_user_cannot_write_to_is_told_in_one_line(
    image: Image, volume: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with container(image, volume, log, user="34567:34567") as running:
        assert running.starter.wait(60) == 1
    (line,) = log.read_text().splitlines()
    assert "/var/lib/sse_app/state" in line
    assert "Permission denied" in line


@pytest.mark.long
def test_an_image_whose_server_hangs_is_not_well(image: Image, volume: Path, tmp_path: Path) -> None:
    with (
        reserved_port(everywhere=True) as port,
        container(image, volume, tmp_path / "log", SSE_APP_PORT=str(port)) as running,
    ):
        until(lambda: is_ready(f"http://127.0.0.1:{port}"), "the server is ready")
        os.kill(running.pid, signal.SIGSTOP)
        assert running.execute(image.health).returncode != 0
        os.kill(running.pid, signal.SIGCONT)
        assert running.execute(image.health).returncode == 0
