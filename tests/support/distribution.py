"""What ``make dist`` builds, and installations of it in environments that have nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.installation import copy_packages
from tests.support.npm import installed_modules
from tests.support.server_process import ROOT


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, the source distribution and the package for npm, built from this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    if shutil.which("npm"):
        installed_modules()  # else they would be fetched for this alone
    command = [sys.executable, str(ROOT / "scripts/dist.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(map(Path, done.stdout.split())) == sorted(folder.iterdir())
    return folder


def wheel_of(dist: Path) -> Path:
    """Return the wheel."""
    (wheel,) = dist.glob("*.whl")
    return wheel


def install_wheel(wheel: Path, environment: Path) -> Path:
    """Make an environment with the wheel and what it needs, without a network; return its folder of commands.

    What it needs is copied from the environment of the tests, in which pip has installed it by its hashes.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    copy_packages(next((environment / "lib").glob("python3*/site-packages")))
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python")]
    for words in (
        ["install", "--quiet", "--no-index", "--no-deps", "--no-compile", f"{wheel}[client]"],
        ["check"],
    ):
        done = subprocess.run([*pip, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return environment / "bin"


@pytest.fixture(scope="session")
def commands(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment in which the wheel is installed, and nothing that it does not need."""
    return install_wheel(wheel_of(dist), tmp_path_factory.mktemp("empty") / "venv")
