"""What the documents name exists: files, tests, make targets, commands with their flags, settings."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from fnmatch import fnmatch
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

from sse_app import Settings
from sse_app.cli.main import main
from sse_app.settings.model import Section

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "client/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
    if "node_modules" not in path.parts
)

NOT_SOURCES = frozenset(
    {".git", ".venv", "venv", "node_modules", "__pycache__", "var", "build", "dist", ".build", ".peers"}
)
"""Folders that are not part of the sources."""

MADE_ELSEWHERE = frozenset({"keys/", "dist/"})
"""Folders that documents name and the sources do not have: in the state directory, and what npm builds."""

OTHER_VARIABLES = frozenset({"CONFIG", "URL", "TOKEN", "SERVICE_HOST", "SITE"})
"""Variables that are no settings: they name the settings file and what ``publish`` and ``listen`` connect to,
Kubernetes sets them, or they are for the Caddyfile."""

SEARCHED = (
    "graceful restart",
    "zero downtime",
    "socket activation",
    "backpressure",
    "slow consumer",
    "replay",
    "fan-out",
)
"""Words that a newcomer searches for."""

_FILE = re.compile(
    r"[\w.*/-]+\.(?:py|md|toml|txt|conf|c|h|js|mjs|ts|json|html|css|svg|gz|yaml|service|socket)"
)
_FOLDER = re.compile(r"(?:[\w.*-]+/)+")
_PLACE = re.compile(r"(?<![\w./-])(?:sse_app|tests|docs|config|bench|examples|client|scripts)/[\w./*-]*")
_MODULE = re.compile(r"(?<![\w./-])\w+(?:/\w+)*\.py\b")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
_TEST = re.compile(r"\btest_[a-z0-9_]*[a-z0-9]\b")
_MAKE = re.compile(r"(?:^|\s)make ([a-z][a-z-]*)")
_PROGRAM = re.compile(r"(?:^|[\s/])(?:main\.py|sse-app|-m sse_app)((?: +[^\s|&;#>)]+)+)")
_INSTALL = re.compile(r"\b(?:pip|npm|pnpm|yarn|bun|uv|uvx|pipx|npx) ((?:[^\s|&;#]+ ?)+)")
_OURS = re.compile(r"(?:sse[-_.]app|sse-client|@sse-app/[a-z]+)(?:\[[^\]]*\])?(?:[=<>~!@].*)?")
_SETTING = re.compile(r"([a-z]+)\.([a-z_]+)")
_VARIABLE = re.compile(r"\bSSE_APP_([A-Z][A-Z_]*[A-Z])\b")


def _spans(text: str) -> list[str]:
    """Return what stands in backticks outside of blocks of code, each in one line."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def _code_lines(text: str) -> Iterator[str]:
    """Yield the lines of the blocks of code, fenced or indented."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


@cache
def _sources() -> tuple[frozenset[str], frozenset[str]]:
    """Return the files and the folders of the sources; each begins with a slash, folders end with one too."""
    files: set[str] = set()
    folders: set[str] = set()
    for folder, inner, names in os.walk(ROOT):
        inner[:] = [name for name in inner if name not in NOT_SOURCES]
        relative = Path(folder).relative_to(ROOT).as_posix()
        place = "/" if relative == "." else f"/{relative}/"
        files.update(place + name for name in names)
        folders.update(f"{place}{name}/" for name in inner)
    return frozenset(files), frozenset(folders)


@cache
def _tests() -> frozenset[str]:
    """Return the names of the test files, without their ending, and of the test functions."""
    names: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        names.add(path.stem)
        names.update(re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8")))
    return frozenset(names)


def _exists(name: str) -> bool:
    """Return whether a path, or the end of one, is a file or folder of the sources; ``*`` stands for anything."""
    name = re.sub(r"^(\.\.?/)+", "", name)
    files, folders = _sources()
    return any(fnmatch(path, f"*/{name}") for path in (folders if name.endswith("/") else files))


def unknown_paths(text: str) -> list[str]:
    """Return the paths that are named and are not there; absolute ones are of other machines."""
    named = [
        span
        for span in _spans(text)
        if (_FILE.fullmatch(span) or _FOLDER.fullmatch(span))
        and not span.startswith("/")
        and span not in MADE_ELSEWHERE
    ]
    for line in _code_lines(text):
        named += {*_PLACE.findall(line), *_MODULE.findall(line)}
    return [name for name in named if not _exists(name) and not _exists(name.rstrip("/") + "/")]


def unknown_tests(text: str) -> list[str]:
    """Return the names of tests that are named and are in no file below ``tests/``."""
    return [name for span in _spans(text) for name in _TEST.findall(span) if name not in _tests()]


def unknown_targets(text: str) -> list[str]:
    """Return the targets of ``make`` that are named and are not in the Makefile."""
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for line in (*_spans(text), *_code_lines(text)) for name in _MAKE.findall(line)]
    return [name for name in named if name not in targets]


def _help(words: list[str]) -> str | None:
    """Return the help of a command, or None where there is no such command."""
    printed = StringIO()
    with redirect_stdout(printed), redirect_stderr(StringIO()), pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    return printed.getvalue() if ended.value.code == 0 else None


def unknown_commands(text: str) -> list[str]:
    """Return the commands that are named and that the program does not have, or not with these flags."""
    unknown = []
    for line in (*_spans(text), *_code_lines(text)):
        for tail in _PROGRAM.findall(line):
            words = shlex.split(tail) if tail.count("'") % 2 == 0 else tail.split()
            flags = [word.partition("=")[0] for word in words if word.startswith("--")]
            first_flag = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
            shown = _help(words[:first_flag])
            if shown is None or any(not re.search(rf"{flag}\b", shown) for flag in flags):
                unknown.append(" ".join(words))
    return unknown


def _settings_of(section: type[Section]) -> tuple[str, ...]:
    return section.__struct_fields__


def unknown_settings(text: str) -> list[str]:
    """Return the settings that are named, as ``section.name`` or as a variable, and that there are not."""
    settings = Settings()
    sections = {
        name: _settings_of(type(value))
        for name in _settings_of(Settings)
        if isinstance(value := getattr(settings, name), Section)
    }
    known = {name.upper() for name in _settings_of(Settings)} | OTHER_VARIABLES
    known |= {f"{section}__{name}".upper() for section, names in sections.items() for name in names}
    unknown = []
    for span in _spans(text):
        if (
            (match := _SETTING.fullmatch(span))
            and match[1] in sections
            and match[2] not in sections[match[1]]
        ):
            unknown.append(span)
    unknown += [f"SSE_APP_{name}" for name in _VARIABLE.findall(text) if name not in known]
    return unknown


def unknown_installs(text: str) -> list[str]:
    """Return what is to be installed by a name of ours, which no registry has: only files and folders can be."""
    return _installed_by_name(*_spans(text), *_code_lines(text))


def _installed_by_name(*lines: str) -> list[str]:
    return [
        word
        for line in lines
        for tail in _INSTALL.findall(line)
        for word in tail.replace("'", " ").replace('"', " ").split()
        if _OURS.fullmatch(word)
    ]


def unknown_links(folder: Path, text: str) -> list[str]:
    """Return the links of a document in ``folder`` that lead to no file."""
    targets = [target for target in _LINK.findall(text) if not target.startswith(("http://", "https://"))]
    return [target for target in targets if not (folder / target).exists()]


@pytest.fixture(params=DOCUMENTS)
def text(request: pytest.FixtureRequest) -> str:
    """The text of each document."""
    return (ROOT / str(request.param)).read_text(encoding="utf-8")


def test_every_path_that_a_document_names_exists(text: str) -> None:
    assert unknown_paths(text) == []


def test_every_test_that_a_document_names_exists(text: str) -> None:
    assert unknown_tests(text) == []


def test_every_make_target_that_a_document_names_exists(text: str) -> None:
    assert unknown_targets(text) == []


def test_every_command_that_a_document_names_exists(text: str) -> None:
    assert unknown_commands(text) == []


def test_every_setting_that_a_document_names_exists(text: str) -> None:
    assert unknown_settings(text) == []


def test_nothing_that_a_document_installs_is_ours_by_its_name(text: str) -> None:
    assert unknown_installs(text) == []


def test_nothing_that_the_program_says_to_install_is_ours_by_its_name() -> None:
    sources = [*(ROOT / "sse_app").rglob("*.py"), *(ROOT / "client").glob("*.mjs"), ROOT / "setup.py"]
    lines = [line for path in sources for line in path.read_text(encoding="utf-8").splitlines()]
    assert _installed_by_name(*lines) == []
    assert any(_INSTALL.search(line) for line in lines)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_to_a_file(document: str) -> None:
    path = ROOT / document
    assert unknown_links(path.parent, path.read_text(encoding="utf-8")) == []


def test_the_hook_before_a_commit_runs_a_make_target_and_fetches_nothing() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    entries = re.findall(r"^ +entry: (.+)$", hooks, re.MULTILINE)
    assert entries == ["make quick"]
    assert unknown_targets("\n".join(f"`{entry}`" for entry in entries)) == []
    assert re.findall(r"^ +- repo: (.+)$", hooks, re.MULTILINE) == ["local"]


@pytest.mark.parametrize("words", SEARCHED)
def test_a_newcomer_finds_the_words_of_the_field(words: str) -> None:
    assert any(words in (ROOT / document).read_text(encoding="utf-8").lower() for document in DOCUMENTS)


@pytest.mark.parametrize(
    ("check", "wrong", "right"),
    [
        (unknown_paths, "see `streams/no_such.py`", "see `streams/hub.py`"),
        (unknown_paths, "see `no_such/`", "see `streams/`"),
        (unknown_paths, "    sse_app/no_such.py   the hub", "    sse_app/streams/hub.py   the hub"),
        (unknown_paths, "    streams/no_such.py sends", "    streams/hub.py sends"),
        (unknown_paths, "```\nsse_app/no_such/\n```", "```\nsse_app/streams/\n```"),
        (unknown_tests, "by `test_no_such_thing`", "by `test_documents.py`"),
        (unknown_tests, "by `test_layers.py::test_no_such_thing`", "by `test_an_import_upwards_is_refused`"),
        (unknown_targets, "run `make no-such`", "run `make test`"),
        (unknown_targets, "    make no-such", "    make test"),
        (unknown_commands, "with `sse-app frobnicate`", "with `sse-app upgrade`"),
        (unknown_commands, "    bin/sse-app user promote ann", "    bin/sse-app user disable ann"),
        (unknown_commands, "    python main.py revoke --everyone", "    python main.py revoke --subject ann"),
        (unknown_installs, "`pip install 'sse-app[client]'`", "`pip install '.[client]'`"),
        (
            unknown_installs,
            "    pip install sse_app==0.1.0 && x",
            "    pip install sse_app-0.1.0-py3-none-any.whl",
        ),
        (unknown_installs, "    npm install @sse-app/client vue", "    npm install ./client vue"),
        (unknown_installs, "    npx sse-client", "    npm install ./sse-app-client-0.1.0.tgz"),
        (unknown_settings, "the setting `limits.no_such`", "the setting `limits.streams`"),
        (unknown_settings, "`SSE_APP_KEEPALIVE__NO_SUCH`", "`SSE_APP_KEEPALIVE__PING_INTERVAL`"),
    ],
)
def test_a_name_of_what_does_not_exist_is_found(
    check: Callable[[str], list[str]], wrong: str, right: str
) -> None:
    assert len(check(wrong)) == 1
    assert check(right) == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    links = "[wrong](docs/no_such.md), [right](docs/security.md#threats), [outside](https://example.com/a.md)"
    assert unknown_links(ROOT, links) == ["docs/no_such.md"]
