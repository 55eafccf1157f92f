"""Environments of Python for what tests run beside: made once, also where several of pytest's processes want one."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tests.support.programs import unavailable
from tests.support.server_process import ROOT


def environment_with(name: str) -> Path:
    """Return the folder of the programs of an environment with what a list in ``tests/support/packages`` names.

    It has, behind that, what the environment of the tests has, and this checkout. Where the packages cannot be had the
    test is skipped, and in CI it fails.
    """
    packages = ROOT / f"tests/support/packages/{name}.txt"
    digest = hashlib.sha256(packages.read_bytes() + sys.version.encode() + str(ROOT).encode()).hexdigest()[
        :16
    ]
    folder = Path(tempfile.gettempdir()) / f"sse-app-tests-{name}-{digest}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run(
                [sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60
            )
            pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install"]
            quietly = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
            command = [*pip, *quietly, "--require-hashes", "--requirement", str(packages)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode:
                unavailable(f"pip cannot install {packages.name}: {done.stderr[-400:]}")
            site = next((folder / "lib").glob("python3*/site-packages"))
            (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
            (folder / "complete").touch()
    return folder / "bin"
