"""How far a long command has come, where standard error is no terminal."""

from __future__ import annotations

import re

import pytest

from sse_app.cli import progress
from sse_app.cli.progress import Progress


def test_without_a_terminal_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress("events", 2_000)
    shown.add(500)  # too soon
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.0)
    shown.add(500)
    shown.add(1_500)  # more have come than there were
    shown.end()
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"50%: 1,000/2,000 events, [\d,]+ events/s", lines[0])
    assert re.fullmatch(r"100%: 2,500/2,500 events, [\d,]+ events/s", lines[1])
    assert len(lines) == 2


def test_nothing_to_do_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("events", 0)
    shown.add(0)
    shown.end()
    assert capsys.readouterr().err == ""
