"""What is counted is what is held: bytes that live long take no more memory than they are long."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from sse_app.auth.tokens import issuer
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.auth.tokens.keyring import KeyRing
from sse_app.core.channels import ChannelName
from sse_app.core.events import Event, new_event
from sse_app.core.selection import interest_of
from sse_app.streams.replay_cache import MAX_ANSWERS_BYTES, ReplayCache

ROOT = Path(__file__).parents[2]
MEBIBYTE = 2**20

GROWTH = """
import sys
from pathlib import Path

import orjson

from sse_app.core.channels import parse_channel
from sse_app.core.events import Event, new_event
from sse_app.streams.replay_cache import ReplayCache

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def event(seq):
    request = orjson.loads(b'{"event":"%s","data":{"text":"%s","n":%d}}' % (TYPE, TEXT, seq))
    new = new_event(parse_channel("alerts"), request["event"], request["data"], now="2026-11-26T02:33:31.189Z")
    return Event(seq, *new)

TYPE, TEXT = b"t" * int(sys.argv[1]), b"a" * int(sys.argv[2])
ring = ReplayCache("e", 8 * 2**20)
ring.add([event(seq) for seq in range(1, 101)])
before = resident()
for seq in range(101, 50_101):
    ring.add([event(seq)])
print(resident() - before)
"""
"""Fills the ring of recent events many times over in a process of its own, and prints how much it grew by."""


@pytest.mark.slow
@pytest.mark.parametrize(("type", "text"), [(3, 1), (128, 1), (3, 200), (3, 2000)])
def test_the_ring_of_recent_events_takes_the_memory_that_it_counts(type: int, text: int) -> None:
    command = [sys.executable, "-c", GROWTH, str(type), str(text)]
    grown = int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60).stdout)
    print(f"{grown / MEBIBYTE:.1f} MiB")
    assert 4 * MEBIBYTE < grown < 10 * MEBIBYTE


def test_replays_of_large_events_are_kept_within_bounds() -> None:
    channels = [ChannelName(f"channel{number}") for number in range(32)]
    data = {"text": "a" * 500_000}
    ring = ReplayCache("e", 64 * MEBIBYTE)
    ring.add([Event(seq, *new_event(name, "big", data, now="-")) for seq, name in enumerate(channels, 1)])
    answers = [ring.between(0, 32, interest_of((name,)), {}) for name in channels]
    assert all(answer is not None and len(answer[0]) > 500_000 for answer in answers)
    held = sum(len(encoded) for encoded, _ in ring._answers.values())
    assert 0 < held <= MAX_ANSWERS_BYTES


@pytest.mark.long
def test_tokens_that_grant_many_channels_are_remembered_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer, "MAX_REMEMBERED", 2**20)
    tokens = issuer.Tokens(KeyRing.load(tmp_path), issuer="sse_app", audience="sse_app", longest=3600)
    issued = []
    tracemalloc.start()
    try:
        for number in range(1500):
            grants = Grants.of(f"some.channel.of-user-{number}.{each}" for each in range(120))
            issued.append(tokens.issue(TokenKind.STREAM, "ann", "session", grants, 600))
            if number == 1023:  # so many grants are kept for all tokens
                begun = tracemalloc.get_traced_memory()[0]
        taken = tracemalloc.get_traced_memory()[0] - begun - sum(map(len, issued[1024:]))
    finally:
        tracemalloc.stop()
    assert sum(map(len, issued)) > 5 * issuer.MAX_REMEMBERED
    assert taken < issuer.MAX_REMEMBERED
    for token in (issued[0], issued[-1], issued[0]):  # also one that was forgotten is good
        assert tokens.verify(token, TokenKind.STREAM).subject == "ann"


def test_json_is_written_by_the_one_function_whose_result_is_of_the_exact_length() -> None:
    users = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "sse_app").rglob("*.py")
        if "orjson.dumps(" in path.read_text()
    ]
    # A line of the log is decoded at once, and so copied.
    assert sorted(users) == ["sse_app/core/json_text.py", "sse_app/process/log_format.py"]
