"""What npm installs and builds for the tests: once, also where several of pytest's processes want it at a time."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.programs import require
from tests.support.server_process import ROOT

CLIENT = ROOT / "client"
_QUIETLY = ("--no-audit", "--no-fund")


@contextmanager
def _alone() -> Iterator[None]:
    """Keep the other processes that run tests on this machine out meanwhile."""
    with (Path(tempfile.gettempdir()) / "sse-app-tests-npm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def npm(*arguments: str, folder: Path = CLIENT) -> str:
    """Run npm in a folder, and return what it prints."""
    command = [require("npm"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed_modules() -> Path:
    """Return the folder of the modules that the browser client's lock names."""
    installed_for(CLIENT)
    return CLIENT / "node_modules"


def installed_for(folder: Path) -> None:
    """Install what the lock in a folder names there, where it is not yet, or the lock has changed since."""
    with _alone():
        _install(folder)


def _install(folder: Path) -> None:
    written = folder / "node_modules/.package-lock.json"  # npm writes it last
    if not written.exists() or written.stat().st_mtime < (folder / "package-lock.json").stat().st_mtime:
        npm("ci", *_QUIETLY, folder=folder)


def installed_package(name: str, version: str) -> Path:
    """Return a folder in which a package of npm is installed, of this version."""
    folder = Path(tempfile.gettempdir()) / f"sse-app-tests-{name}-{version}"
    with _alone():
        if not (folder / "node_modules/.package-lock.json").exists():
            folder.mkdir(exist_ok=True)
            npm("install", *_QUIETLY, "--silent", "--prefix", str(folder), f"{name}@{version}", folder=folder)
    return folder


@pytest.fixture(scope="session")
def built() -> str:
    """What the build of the browser client prints; it is built anew when its sources have changed."""
    with _alone():
        _install(CLIENT)
        modules = CLIENT / "node_modules"
        sources = [*sorted((CLIENT / "src").rglob("*")), *CLIENT.glob("*.mjs"), *CLIENT.glob("package*.json")]
        sources += sorted((ROOT / "sse_app/static").glob("sse-*"))
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources if path.is_file())).hexdigest()
        printed = modules / f".printed-{digest}"
        if not (printed.exists() and (CLIENT / "dist/vue.js").exists()):
            for earlier in modules.glob(".printed-*"):  # of sources that may come back
                earlier.unlink()
            printed.write_text(npm("run", "build"))
        return printed.read_text()
