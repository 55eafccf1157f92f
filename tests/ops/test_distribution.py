"""What a release consists of: the wheel runs in an empty environment, the source distribution passes its own tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import httpx
import pytest

from sse_app.cli.config_files import FILES
from sse_app.version import VERSION
from tests.ops.test_commands import at_a_terminal
from tests.support.distribution import commands as commands
from tests.support.distribution import dist as dist
from tests.support.distribution import wheel_of
from tests.support.npm import npm
from tests.support.ports import reserved_port
from tests.support.programs import require, unavailable
from tests.support.server_process import ROOT, clean_environment
from tests.support.waiting import until

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def sources(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(next(dist.glob("sse_app-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"sse_app-{VERSION}"


@pytest.mark.long
def test_all_three_are_built_and_the_checkout_stays_as_it_was(dist: Path) -> None:
    expected = [f"sse_app-{VERSION}.tar.gz", f"sse_app-{VERSION}-py3-none-any.whl"]
    if shutil.which("npm"):
        name = json.loads((ROOT / "client/package.json").read_text())["name"]
        expected.append(f"{name.replace('@', '').replace('/', '-')}-{VERSION}.tgz")
    assert {path.name for path in dist.iterdir()} == set(expected)
    named = (ROOT / "README.md").read_text() + (ROOT / "client/README.md").read_text()
    assert f"pip install '{wheel_of(dist).name}[client]'\n" in named
    assert named.count(f"npm install ./sse-app-client-{VERSION}.tgz\n") == 2
    for made in ("build", "sse_app.egg-info"):
        assert not (ROOT / made).exists()


@pytest.mark.slow
def test_the_wheel_has_what_an_operator_needs_byte_for_byte(dist: Path) -> None:
    with zipfile.ZipFile(wheel_of(dist)) as wheel:
        names = wheel.namelist()
        for folder in ("config", "docs"):
            for path in (ROOT / folder).rglob("*.md" if folder == "docs" else "*"):
                if path.is_file():
                    assert wheel.read(f"sse_app/{path.relative_to(ROOT)}") == path.read_bytes()
        assert (
            wheel.read("sse_app/static/openapi.json") == (ROOT / "sse_app/static/openapi.json").read_bytes()
        )
    assert {"sse_app/cli/units/service", "sse_app/static/sse-client.js"} <= set(names)
    assert [
        name for name in names if not name.startswith(("sse_app/", f"sse_app-{VERSION}.dist-info/"))
    ] == []
    assert [name for name in names if name.endswith((".pyc", ".map"))] == []


@pytest.mark.slow
def test_the_source_distribution_has_all_that_is_in_the_repository(sources: Path) -> None:
    if not (ROOT / ".git").exists():
        unavailable("these are no sources from git")
    listed = subprocess.run(
        [require("git"), "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    there = {path.relative_to(sources).as_posix() for path in sources.rglob("*") if path.is_file()}
    made = {name for name in there if name.startswith("sse_app.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert there - made == files
    assert os.access(sources / ".ci/run", os.X_OK)


@pytest.mark.slow
@pytest.mark.node
def test_the_package_for_npm_is_installed_from_its_file_and_has_all_that_it_exports(
    dist: Path, tmp_path: Path
) -> None:
    (packed,) = dist.glob("*.tgz")
    (tmp_path / "package.json").write_text('{"private": true}')
    npm("install", "--offline", "--no-audit", "--no-fund", str(packed), folder=tmp_path)
    installed = tmp_path / "node_modules/@sse-app/client"
    exports = json.loads((installed / "package.json").read_text())["exports"]
    wanted = [path for each in exports.values() for path in each.values()]
    assert len(wanted) > 2
    assert [path for path in wanted if not (installed / path).is_file()] == []
    script = "const { SSEClient } = await import('@sse-app/client'); console.log(typeof SSEClient)"
    done = subprocess.run(
        [require("node"), "--input-type=module", "--eval", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("function\n", "")


def own_tests(sources: Path, *words: str) -> str:
    """Run tests of the sources that were unpacked, and return what pytest prints."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", *words],
        cwd=sources,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_the_source_distribution_passes_those_of_its_tests_that_read_it(sources: Path) -> None:
    printed = own_tests(
        sources,
        *(f"tests/unit/test_{name}.py" for name in ("documents", "dependencies")),
    )
    assert re.search(r"[0-9]{3} passed", printed)


@pytest.mark.long
def test_the_source_distribution_builds_what_the_repository_builds(
    dist: Path, sources: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "scripts/dist.py", str(tmp_path)]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in dist.iterdir()}
    ours, theirs = (zipfile.ZipFile(wheel_of(folder)) for folder in (dist, tmp_path))
    with ours, theirs:
        assert {one.filename: one.CRC for one in ours.infolist()} == {
            one.filename: one.CRC for one in theirs.infolist()
        }


FOLDERS = sorted(path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").exists())


@pytest.mark.long
@pytest.mark.parametrize("folder", [name for name in FOLDERS if name != "support"])
def test_the_source_distribution_passes_its_own_tests(sources: Path, folder: str) -> None:
    printed = own_tests(
        sources, "--numprocesses=2", f"tests/{folder}", "--deselect=tests/ops/test_distribution.py"
    )
    assert " passed" in printed


@pytest.mark.long
def test_in_an_empty_environment_the_wheel_serves_and_prints_its_configurations(
    commands: Path, tmp_path: Path
) -> None:
    program = str(commands / "sse-app")

    def run(*words: str, input: str = "") -> str:
        done = subprocess.run(
            [program, *words], cwd=tmp_path, env=environment, input=input, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with reserved_port() as port:
        environment = clean_environment(SSE_APP_PORT=str(port))
        assert run("--version") == f"sse-app {VERSION}\n"
        where = subprocess.run(
            [str(commands / "python"), "-c", "import sse_app; print(sse_app.__file__)"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        ).stdout
        assert Path(where.strip()).is_relative_to(commands.parent)
        granted = ["--subscribe", "alerts", "--publish", "alerts"]
        run("user", "add", "ann", "--init", "--password-stdin", *granted, input=PASSWORD)
        with (tmp_path / "log").open("w") as log:
            server = subprocess.Popen([program, "serve"], cwd=tmp_path, env=environment, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"

            def is_ready() -> bool:
                assert server.poll() is None, (tmp_path / "log").read_text()
                try:
                    return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
                except httpx.TransportError:
                    return False

            until(is_ready, "the server is ready")
            login = {"username": "ann", "password": PASSWORD}
            tokens = httpx.post(f"{url}/api/v1/auth/login", json=login, trust_env=False).json()
            id = run("publish", "alerts", "risk_alert", '{"severity": "low"}').strip()
            query = {"token": tokens["stream_token"], "last": "1"}
            with httpx.stream("GET", f"{url}/api/v1/sse/alerts", params=query, trust_env=False) as stream:
                lines = stream.iter_lines()
                assert f"id: {id}" in lines
                assert next(lines) == "event: risk_alert"
            for path in ("/", "/admin", "/static/sse-client.js", "/openapi.json"):
                assert httpx.get(f"{url}{path}", trust_env=False).status_code == 200
            assert "failure" not in run("doctor", "--url", url)
            assert run("check-token", input=tokens["access_token"]).startswith("valid: ")
        finally:
            server.terminate()
            assert server.wait(60) == 0
        for what, name in FILES.items():
            assert run("config", what) == (ROOT / "config" / name).read_text()
        units = run("config", "systemd")
    assert f"ExecStart={commands / 'python'} -m sse_app serve\n" in units


def first_steps() -> list[str]:
    """Return the commands with which the README begins, without what it says of them."""
    section = (ROOT / "README.md").read_text().partition("\n## Use it\n")[2]
    block = re.search(r"\n\n((?:    .+\n)+)\n", section)
    assert block is not None
    return [line[4:] for line in block[1].splitlines()]


def take_first_steps(folder: Path, commands: list[str]) -> str:
    """Type the commands one after the other at a terminal, until the event has come; return what it shows."""
    (folder / "steps").write_text("set -e\n" + "\n".join(commands) + "\n")
    with reserved_port() as port:
        _, said = at_a_terminal(
            folder,
            ["steps"],
            [
                ("password: ", f"{PASSWORD}\n"),
                ("the same again: ", f"{PASSWORD}\n"),
                ('"event": "risk_alert"', "\x03"),  # Ctrl-C, which ends the server too
            ],
            program=["bash"],
            SSE_APP_PORT=str(port),
        )
    return said


@pytest.mark.slow
def test_the_first_steps_of_the_readme_lead_to_an_event(commands: Path, tmp_path: Path) -> None:
    install, *steps = first_steps()
    assert len(steps) < 5
    assert install == "python3 -m venv venv && venv/bin/pip install '.[client]'"
    (tmp_path / "venv").symlink_to(commands.parent)  # in which that is done already
    said = take_first_steps(tmp_path, steps)
    assert '"severity": "low"' in said
    assert PASSWORD not in said


@pytest.mark.long
def test_the_first_steps_of_the_readme_lead_to_an_event_on_a_fresh_machine(
    sources: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkout"
    shutil.copytree(sources, folder)
    begun = time.monotonic()
    said = take_first_steps(folder, first_steps())
    print(f"the first event after {time.monotonic() - begun:.0f} s")
    assert '"severity": "low"' in said


@pytest.mark.long
def test_the_wheel_is_installed_with_the_locked_requirements_and_no_others(
    dist: Path, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    locked = ["--require-hashes", "-r", str(ROOT / "requirements-server.txt")]
    for words in (["install", *locked], ["install", "--no-deps", str(wheel_of(dist))], ["check"]):
        pip = [str(tmp_path / "venv/bin/pip"), *words]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        [str(tmp_path / "venv/bin/sse-app"), "check-config", "--port", "0"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
