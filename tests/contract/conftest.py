"""Fixtures of the tests in this folder alone."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a log can be that several processes share: a file, or a database by its URL."""
    if request.param == "sqlite":
        return tmp_path / "e.db"
    return str(request.getfixturevalue("database_url"))
