"""What others wrote is here in one version, known by its hash: what pip and npm install, and what is copied."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sse_app.version import VERSION
from tests.support.npm import CLIENT, installed_modules
from tests.support.server_process import ROOT

VENDOR = ROOT / "sse_app/static/vendor"
MARKET_DATA = ROOT / "examples/market/data"

PINNED = {
    "requirements.txt": ("uvloop", "postgres", "client", "demo", "test"),
    "requirements-server.txt": ("uvloop", "postgres", "client"),
}
"""The files that pip installs from, and the extras of the package that each has."""

_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pins(file: str) -> dict[str, tuple[str, int]]:
    """Return version and number of hashes of each package; fail on a line of another kind."""
    text = (ROOT / file).read_text().replace("\\\n", " ")
    found: dict[str, tuple[str, int]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin, *hashes = line.split()
            name, version = pin.split("==")
            assert all(_HASH.fullmatch(word) for word in hashes), line
            assert canonicalize_name(name) not in found, name
            found[canonicalize_name(name)] = (version, len(hashes))
    return found


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """What setup.py says of the package."""
    said: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", said.update)
    source = (ROOT / "setup.py").read_text()
    exec(compile(source, str(ROOT / "setup.py"), "exec"), {"__file__": str(ROOT / "setup.py")})
    return said


@pytest.mark.parametrize("file", PINNED)
def test_every_pinned_package_has_hashes_and_what_setup_py_asks_for_is_pinned_within_its_range(
    file: str, declared: Mapping[str, Any]
) -> None:
    pinned = pins(file)
    assert [name for name, (_, hashes) in pinned.items() if not hashes] == []
    wanted = [*declared["install_requires"]]
    for extra in PINNED[file]:
        wanted += declared["extras_require"][extra]
    for text in wanted:
        requirement = Requirement(text)
        version, _ = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), text


def test_the_servers_file_is_a_part_of_the_other() -> None:
    assert pins("requirements-server.txt").items() <= pins("requirements.txt").items()


@pytest.mark.parametrize("file", PINNED)
def test_no_file_says_where_to_install_from(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    content = "\n".join(line for line in lines if not line.startswith("#"))
    assert "://" not in content
    assert set(re.findall(r"--[a-z-]+", content)) == {"--hash"}


def test_the_peers_of_the_benchmark_have_hashes_too() -> None:
    assert [name for name, (_, hashes) in pins("bench/requirements.txt").items() if not hashes] == []


def test_make_installs_nothing_without_a_hash() -> None:
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line]
    assert lines
    assert all("--require-hashes" in line for line in lines)


def test_everything_that_npm_installs_has_a_hash() -> None:
    packages = json.loads((CLIENT / "package-lock.json").read_text())["packages"]
    assert [name for name, package in packages.items() if name and "integrity" not in package] == []


def test_the_npm_package_has_the_version_of_the_server() -> None:
    package = json.loads((CLIENT / "package.json").read_text())
    lock = json.loads((CLIENT / "package-lock.json").read_text())
    assert (package["name"], package["version"]) == ("@sse-app/client", VERSION)
    for noted in (lock, lock["packages"][""]):
        assert (noted["name"], noted["version"]) == (package["name"], package["version"])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def vendored() -> dict[str, Any]:
    """Return what is noted of the copied libraries."""
    noted = json.loads((VENDOR / "versions.json").read_text())
    assert isinstance(noted, dict)
    return noted


def test_the_copied_libraries_are_those_whose_hashes_are_noted() -> None:
    noted = {name: file["sha256"] for one in vendored().values() for name, file in one["files"].items()}
    found = {path.name: sha256(path) for path in VENDOR.iterdir() if path.name != "versions.json"}
    assert found == noted
    packages = json.loads((CLIENT / "package-lock.json").read_text())["packages"]
    for name, one in vendored().items():
        locked = packages[f"node_modules/{name}"]
        assert (one["version"], one["integrity"]) == (locked["version"], locked["integrity"])


@pytest.mark.slow
@pytest.mark.node
def test_the_copied_libraries_are_what_npm_installs() -> None:
    modules = installed_modules()
    for name, one in vendored().items():
        for file in one["files"].values():
            assert sha256(modules / name / file["source"]) == file["sha256"]


def test_the_market_data_is_that_whose_hashes_are_noted() -> None:
    noted = re.findall(r"^ +([0-9a-f]{64})  (\S+)$", (MARKET_DATA / "README.md").read_text(), re.MULTILINE)
    assert {name: sum for sum, name in noted} == {
        path.name: sha256(path) for path in MARKET_DATA.glob("*.gz")
    }
