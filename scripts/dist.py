"""Builds what a release consists of into ``dist/``: the wheel, the source distribution, and the browser client for npm.

    .venv/bin/python scripts/dist.py [FOLDER]

All is built in a copy of the sources, so the checkout stays as it is; and the wheel from the source distribution, so
that this is known to be whole.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MADE_HERE = shutil.ignore_patterns(
    ".git", ".venv", "venv", ".*_cache", ".hypothesis", ".build", ".peers", "node_modules", "__pycache__",
    "var", "build", "dist", "*.egg-info",
)  # fmt: skip
"""What is in a checkout and is no source; git, where it is at hand, says itself what is."""

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def copy_sources(to: Path) -> None:
    """Copy the sources, which are the files that git knows; without git, all that is not made in a checkout."""
    if not (ROOT / ".git").exists():
        shutil.copytree(ROOT, to, ignore=MADE_HERE, symlinks=True)
        return
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def build(hook: str, sources: Path, to: Path) -> None:
    """Call a hook of PEP 517 in a process of its own, which it leaves changed."""
    command = [sys.executable, "-c", BUILD, hook, str(to)]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)


def is_as_locked(modules: Path, lock: Path) -> bool:
    """Return whether the modules that npm has installed are those of a lock; optional ones need not be there."""
    try:
        there = json.loads((modules / ".package-lock.json").read_text())["packages"]
    except (OSError, ValueError, KeyError):
        return False
    wanted = {name: package for name, package in json.loads(lock.read_text())["packages"].items() if name}
    return all(
        package.get("optional") or there.get(name, {}).get("version") == package["version"]
        for name, package in wanted.items()
    )


def pack_client(sources: Path, to: Path) -> None:
    """Pack the browser client for npm, with the modules that are installed in the checkout, if there are."""
    installed = ROOT / "client/node_modules"
    if is_as_locked(installed, sources / "client/package-lock.json"):
        (sources / "client/node_modules").symlink_to(installed)
    else:
        subprocess.run(
            ["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=sources / "client", check=True
        )
    packing = ["npm", "pack", "--silent", "--pack-destination", str(to)]
    subprocess.run(packing, cwd=sources / "client", check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Build all three, and print their paths."""
    to = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve()
    with tempfile.TemporaryDirectory() as folder:
        sources, built = Path(folder) / "sources", Path(folder) / "built"
        built.mkdir()
        copy_sources(sources)
        build("build_sdist", sources, built)
        (archive,) = built.glob("*.tar.gz")
        with tarfile.open(archive) as unpacked:
            unpacked.extractall(folder, filter="data")
        build("build_wheel", Path(folder) / archive.name.removesuffix(".tar.gz"), built)
        if shutil.which("npm"):
            pack_client(sources, built)
        else:
            print("npm is not installed: the package of the browser client is left out", file=sys.stderr)
        to.mkdir(parents=True, exist_ok=True)
        for path in sorted(built.iterdir()):
            shutil.copy(path, to / path.name)
            print(to / path.name)


if __name__ == "__main__":
    main()
