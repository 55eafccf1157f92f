"""Learning of revocations costs what is new, not what is known already."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sse_app.auth.records import Revocation
from sse_app.auth.revocations import Revocations
from sse_app.auth.sqlite_store import SqliteAuthStore

KNOWN = 40_000
LONGEST = 3600.0


async def cost_of_learning(path: Path, known: int) -> float:
    """Return the processor's time, in seconds, in which 40 revocations are learned one by one beside those known."""
    store = SqliteAuthStore(path)
    await store.open()
    try:
        await store.revoke(Revocation.of_session(f"session{number}") for number in range(known))
        revocations = Revocations(store, LONGEST)
        await revocations.learn()
        assert len(revocations) == known
        cost = 0.0
        for number in range(40):
            await store.revoke([Revocation.of_session(f"other{number}")])
            begun = time.thread_time()
            assert await revocations.learn()
            cost += time.thread_time() - begun
        assert len(revocations) == known + 40
        return cost
    finally:
        await store.close()


@pytest.mark.gen_test
async def test_learning_one_by_one_is_not_slower_where_very_many_are_known(tmp_path: Path) -> None:
    few = await cost_of_learning(tmp_path / "few.db", 10)
    many = await cost_of_learning(tmp_path / "many.db", KNOWN)
    assert many < 10 * few, (few, many)
