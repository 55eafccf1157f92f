"""Installations of the program beside the checkout: for another user, or to be replaced by another one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

from tests.support.server_process import ROOT


def install(folder: Path, *, user: str | None = None, version: str = "") -> list[str]:
    """Install the program and what it needs into an environment of its own, and return what starts it.

    Args:
        folder: where to; it is made.
        user: who must be able to run it.
        version: what it says it is; empty leaves that alone.
    """
    folder.mkdir(parents=True)
    program = folder / "program"
    program.mkdir()
    shutil.copy(ROOT / "main.py", program)
    shutil.copytree(ROOT / "sse_app", program / "sse_app")
    if version:
        (program / "sse_app/version.py").write_text(f'"""The version."""\n\nVERSION = "{version}"\n')
    python = _interpreter(folder, user)
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    theirs = next((folder / "venv/lib").glob("python3*/site-packages"))
    if user:
        copy_packages(theirs)
        subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    else:
        (theirs / "theirs.pth").write_text(f"{_packages()}\n")
    return [str(folder / "venv/bin/python"), str(program / "main.py")]


def copy_packages(to: Path) -> None:
    """Copy what ``requirements-server.txt`` names, as it is installed here, to the packages of another environment."""
    for name in _needed_by_a_server():
        if (_packages() / name).is_dir():
            shutil.copytree(_packages() / name, to / name, symlinks=True)
        else:
            shutil.copy2(_packages() / name, to)


def _packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


def _needed_by_a_server() -> set[str]:
    """Return what lies in the folder of packages for a server."""
    names = re.findall(r"^([\w.-]+)==", (ROOT / "requirements-server.txt").read_text(), re.MULTILINE)
    files = [file for name in names for file in distribution(name).files or ()]
    return {file.parts[0] for file in files} - {"..", "__pycache__"}


def _interpreter(folder: Path, user: str | None) -> str:
    """Return an interpreter of this version that a user can run, copied if there is none."""
    own = Path(sys.executable).resolve()
    if user is None:
        return str(own)
    name = f"python3.{sys.version_info.minor}"
    for candidate in (own, Path("/usr/bin") / name, Path("/usr/local/bin") / name):
        # Not by trying: root's own search path may lead elsewhere than a service manager's.
        if all(
            os.stat(path).st_mode & 0o001 for path in [candidate, *candidate.parents] if path.exists()
        ) and (candidate.exists() and _has_venv(candidate)):
            return str(candidate)
    copied = folder / "python"
    ignored = shutil.ignore_patterns("site-packages", "test", "share")
    shutil.copytree(sys.base_prefix, copied, ignore=ignored, symlinks=True)
    return str(copied / "bin" / name)


def _has_venv(python: Path) -> bool:
    done = subprocess.run([str(python), "-c", "import venv"], capture_output=True, check=False)
    return done.returncode == 0
