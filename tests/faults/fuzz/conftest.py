"""Servers that are fuzzed: in the short form those of one process, here and elsewhere, in the long one each way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.fuzz.fuzzed import Fuzzed
from tests.faults.fuzz.servers import WAYS

LONG = 40
"""How many times as often as in the short form something is asked in the long one."""


def _params() -> Iterator[Any]:
    for number, way in enumerate(WAYS):
        if number < 2:
            yield pytest.param((way, 1), id=way)
        yield pytest.param((way, LONG), id=f"{way}, long", marks=pytest.mark.long)


@pytest.fixture(scope="module", params=_params())
def fuzzed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    """The servers, in each way to run them."""
    way, times = request.param
    with WAYS[way](tmp_path_factory.mktemp("fuzz")) as fuzzed:
        fuzzed.times = times
        yield fuzzed
