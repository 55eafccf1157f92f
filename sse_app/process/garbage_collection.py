"""When Python collects garbage cycles: not while the process starts, and not while streams wait for a handover."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def garbage_collection(enabled: bool) -> Iterator[None]:
    """Switch the collector on or off for a while, and then to what it was before."""
    before = gc.isenabled()
    _switch(enabled)
    try:
        yield
    finally:
        _switch(before)


def _switch(enabled: bool) -> None:
    if enabled:
        gc.enable()
    else:
        gc.disable()


def collect_seldom() -> None:
    """Collect cycles seldom, and never look at what is there already.

    Requests leave cycles, which the young generations catch; streams hold none, so that a full collection
    over ten thousand of them, tens of milliseconds in which nothing else happens, finds nothing.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
