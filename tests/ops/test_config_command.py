"""``sse-app config``: the settings file, and what proxies, systemd, Prometheus and Grafana take."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sse_app.cli.config_files import FILES
from tests.support.programs import require
from tests.support.server_process import ROOT, clean_environment, run_program


def config(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder."""
    return run_program("config", *words, environment=clean_environment(), cwd=folder)


@pytest.mark.parametrize("what", FILES)
def test_each_is_printed_as_it_is_in_the_repository(tmp_path: Path, what: str) -> None:
    done = config(tmp_path, what)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (ROOT / "config" / FILES[what]).read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    done = config(tmp_path, "print", "--output", "mine.toml")
    assert (done.returncode, done.stdout, done.stderr) == (0, "wrote mine.toml\n", "")
    assert (tmp_path / "mine.toml").read_bytes() == (ROOT / "config/sse_app.toml").read_bytes()
    (tmp_path / "mine.toml").write_text("port = 9000\n")
    again = config(tmp_path, "print", "--output", "mine.toml")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "sse-app: mine.toml is there already: remove it, or name another file\n"
    assert (tmp_path / "mine.toml").read_text() == "port = 9000\n"


@pytest.mark.parametrize("output", ["no/such/folder.toml", ".", "link"])
def test_an_output_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, output: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    done = config(tmp_path, "print", "--output", output)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "elsewhere").exists()


def test_the_settings_that_are_written_are_the_defaults(tmp_path: Path) -> None:
    assert (
        config(tmp_path, "print", "--output", "config/sse_app.toml").returncode == 1
    )  # there is no such folder
    (tmp_path / "config").mkdir()
    assert config(tmp_path, "print", "--output", "config/sse_app.toml").returncode == 0
    shown = [
        run_program("check-config", "--port", "0", environment=clean_environment(), cwd=folder).stdout
        for folder in (tmp_path, ROOT.parent)
    ]
    first, second = ([line for line in text.splitlines() if " = " in line] for text in shown)
    assert first == second
    assert len(first) > 50


def test_the_units_are_those_that_systemd_install_writes_for_this_installation(tmp_path: Path) -> None:
    written = config(tmp_path, "systemd", "--output", "units", "--workers", "2", "--port", "9000")
    assert (written.returncode, written.stderr) == (0, "")
    installed = run_program(
        *("systemd", "install", "--unit-dir", "installed", "--run-as", "nobody", "--workers", "2"),
        *("--port", "9000"),
        environment=clean_environment(),
        cwd=tmp_path,
    )
    assert installed.returncode == 0, installed.stderr
    there = {path.name: path.read_text() for path in (tmp_path / "units").iterdir()}
    assert there == {
        path.name: path.read_text().replace("User=nobody", "User=sse_app")
        for path in (tmp_path / "installed").iterdir()
    }
    assert "ListenStream=127.0.0.1:9000" in there["sse-app@.socket"]
    printed = config(tmp_path, "systemd", "--run-as", "nobody").stdout
    assert printed.startswith("# sse-app.socket\n")
    assert "\n# sse-app.service\n" in printed
    assert "User=nobody" in printed


@pytest.mark.parametrize("there", ["sse-app.socket", "sse-app.service"])
def test_no_unit_is_written_where_one_is_there_already(tmp_path: Path, there: str) -> None:
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / there).write_text("mine")
    done = config(tmp_path, "systemd", "--output", "units")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"sse-app: units/{there} is there already: remove it, or name another file\n"
    assert {path.name: path.read_text() for path in (tmp_path / "units").iterdir()} == {there: "mine"}


@pytest.mark.parametrize(("what", "output"), [("print", "sse_app.toml"), ("systemd", ".")])
def test_a_disk_that_gets_full_meanwhile_leaves_no_part_of_a_file(
    tmp_path: Path, what: str, output: str
) -> None:
    done = run_program(
        *("config", what, "--output", output),
        environment=clean_environment(PYTHONDONTWRITEBYTECODE="1"),
        cwd=tmp_path,
        within=[require("prlimit"), "--fsize=1024"],
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("sse-app: cannot write ")
    assert list(tmp_path.iterdir()) == []


def test_a_word_that_it_does_not_know_is_wrong_usage(tmp_path: Path) -> None:
    done = config(tmp_path, "apache")
    assert done.returncode == 2
    assert "haproxy" in done.stderr
