"""Install the peers that come from PyPI and npm, pinned, into the folder `.peers`, which git ignores."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from bench.servers.interface import PEERS

HERE = Path(__file__).resolve().parent


def install() -> None:
    """Install or bring up to date; a tool that is missing is reported, not fatal."""
    PEERS.mkdir(exist_ok=True)
    python = PEERS / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS / "venv")], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes"]
    subprocess.run([*pip, "--requirement", str(HERE / "requirements.txt")], check=True)
    if shutil.which("npm") is None:
        print("bench: npm is not installed, better-sse is left out (Debian: apt install nodejs npm)")
        return
    shutil.copy(HERE / "package.json", PEERS / "package.json")
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
    subprocess.run(command, cwd=PEERS, check=True)


def pinned() -> dict[str, str]:
    """Return the versions that `install` asks for."""
    words = (HERE / "requirements.txt").read_text().split()
    versions = dict(word.split("==", 1) for word in words if "==" in word)
    versions.update(json.loads((HERE / "package.json").read_text())["dependencies"])
    return versions
