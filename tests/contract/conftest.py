"""Fixtures of the tests in this folder alone."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module, obj: object) -> Generator[None, Any, Any]:
    """Leave out tests marked ``long`` where they would not run.

    Schemathesis makes up the first requests of a test while it collects, and each process of a run collects all
    tests: those of the long ones would cost it a second.
    """
    found = yield
    marks = {mark.name for mark in getattr(obj, "pytestmark", ())}
    return [] if "long" in marks and collector.config.option.markexpr == "not long" else found
