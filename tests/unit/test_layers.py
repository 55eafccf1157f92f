"""Imports run one way: a layer of ``sse_app`` imports only those below it, and no two modules import each other.

The order is in ``pyproject.toml``; ``lint-imports``, run by hand, names the file and line of each violation. Imports
for types only count as well: a module that cannot be read without another depends on it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())


def _lint(folder: Path) -> tuple[int, str]:
    """Run ``lint-imports`` in a folder and return its exit status and what it printed."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def _cycles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Return the groups of modules of which each imports all others, directly or through one another.

    A group is a strongly connected component of more than one module (Tarjan's algorithm, without recursion).
    """
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    on_path: set[str] = set()
    cycles: list[list[str]] = []
    for root in sorted(graph.modules):
        if root in order:
            continue
        work = [(root, iter(sorted(graph.find_modules_directly_imported_by(root))))]
        order[root] = lowest[root] = len(order)
        path.append(root)
        on_path.add(root)
        while work:
            module, imported = work[-1]
            for other in imported:
                if other not in order:
                    order[other] = lowest[other] = len(order)
                    path.append(other)
                    on_path.add(other)
                    work.append((other, iter(sorted(graph.find_modules_directly_imported_by(other)))))
                    break
                if other in on_path:
                    lowest[module] = min(lowest[module], order[other])
            else:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[module])
                if lowest[module] == order[module]:
                    start = path.index(module)
                    component = path[start:]
                    del path[start:]
                    on_path.difference_update(component)
                    if len(component) > 1:
                        cycles.append(sorted(component))
    return cycles


def _write_package(folder: Path, modules: dict[str, str]) -> None:
    """Write a package ``sample`` with ``modules`` and two layers, ``upper`` above ``lower``."""
    package = folder / "sample"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name, text in modules.items():
        (package / f"{name}.py").write_text(text)
    (folder / "pyproject.toml").write_text(
        """
        [tool.importlinter]
        root_package = "sample"
        exclude_type_checking_imports = false

        [[tool.importlinter.contracts]]
        name = "One way"
        type = "layers"
        containers = ["sample"]
        layers = ["upper", "lower"]
        exhaustive = true
        """
    )


def test_no_layer_imports_one_above_it() -> None:
    status, printed = _lint(ROOT)
    assert status == 0, printed


def test_no_modules_import_each_other() -> None:
    graph = grimp.build_graph("sse_app", exclude_type_checking_imports=False, cache_dir=None)
    assert len(graph.modules) > 50
    assert _cycles(graph) == []


def test_imports_downwards_are_accepted(tmp_path: Path) -> None:
    _write_package(tmp_path, {"upper": "import sample.lower\n", "lower": ""})
    status, printed = _lint(tmp_path)
    assert status == 0, printed


def test_an_import_upwards_is_refused(tmp_path: Path) -> None:
    _write_package(tmp_path, {"upper": "", "lower": "import sample.upper\n"})
    status, printed = _lint(tmp_path)
    assert status == 1, printed
    assert "sample.lower -> sample.upper (l.1)" in printed


@pytest.mark.slow
def test_an_import_upwards_for_types_only_is_refused(tmp_path: Path) -> None:
    lower = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import sample.upper\n"
    _write_package(tmp_path, {"upper": "", "lower": lower})
    status, printed = _lint(tmp_path)
    assert status == 1, printed
    assert "sample.lower -> sample.upper (l.4)" in printed


@pytest.mark.slow
def test_an_import_upwards_within_a_function_is_refused(tmp_path: Path) -> None:
    lower = "def later() -> None:\n    import sample.upper\n"
    _write_package(tmp_path, {"upper": "", "lower": lower})
    status, printed = _lint(tmp_path)
    assert status == 1, printed
    assert "sample.lower -> sample.upper (l.2)" in printed


def test_a_layer_that_the_order_does_not_name_is_refused(tmp_path: Path) -> None:
    _write_package(tmp_path, {"upper": "", "lower": "", "annex": ""})
    status, printed = _lint(tmp_path)
    assert status == 1, printed
    assert "annex" in printed


def test_cycles_are_found_however_long_they_are() -> None:
    graph = grimp.ImportGraph()
    for importer, imported in (
        ("a", "b"),
        ("b", "c"),
        ("c", "a"),
        ("a", "d"),
        ("d", "e"),
        ("e", "d"),
        ("c", "f"),
        ("g", "a"),
    ):
        graph.add_import(importer=importer, imported=imported)
    assert sorted(_cycles(graph)) == [["a", "b", "c"], ["d", "e"]]
