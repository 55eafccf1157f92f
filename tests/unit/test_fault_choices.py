"""What a run of faults leaves to chance comes from its seed alone, whatever happens meanwhile."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.faults import publisher as publishers
from tests.faults.disk import Disk
from tests.faults.journal import Sent, read
from tests.faults.publisher import Publisher, Settings


def requests_of_a_publisher(journal: Path, refused: Sequence[int]) -> list[Sent]:
    """Return the first 20 requests of a publisher of which some are refused, by their numbers among all."""
    numbers = iter(range(10_000))
    ids = iter(range(10_000))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            events = content.get("events", [content])
            status = 503 if next(numbers) in refused else 201
            body = json.dumps({"ids": [f"e-{next(ids)}" for _ in events]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            settings = Settings(
                name="p",
                seed="7 p",
                journal=str(journal),
                ports=[server.server_port],
                channels=["a", "b", "c"],
                kept=False,
                pause=0.0,
            )
            with closing(Publisher(settings, "token")) as publisher:
                working = threading.Thread(target=publisher.run)
                working.start()
                while len({record.name for record in read(journal) if isinstance(record, Sent)}) < 20:
                    assert working.is_alive()
                publisher.ends = True
                working.join()
        finally:
            server.shutdown()
            thread.join()
    first: dict[str, Sent] = {}
    for record in read(journal):
        if isinstance(record, Sent):
            first.setdefault(record.name, record)
    return list(first.values())[:20]


def test_a_publisher_sends_the_same_whatever_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishers, "COMES_BACK", 0.001)
    one = requests_of_a_publisher(tmp_path / "one", refused=[])
    other = requests_of_a_publisher(tmp_path / "other", refused=[0, 1, 5, 6, 7, 20])
    assert [(sent.name, sent.events) for sent in one] == [(sent.name, sent.events) for sent in other]


def test_what_a_power_cut_leaves_of_a_file_does_not_depend_on_other_files(tmp_path: Path) -> None:
    left: list[list[bytes]] = []
    names = [f"file-{number}" for number in range(20)]
    following = set()
    for further in ([], ["another", "and another"]):
        state, of_disk = tmp_path / f"state-{len(further)}", tmp_path / f"disk-{len(further)}"
        state.mkdir()
        for name in [*further, *names]:
            (state / name).write_bytes(b"synchronised")
        disk = Disk(of_disk, state)
        disk.synchronise()
        for name in names:
            (state / name).write_bytes(b"written later")
        chance = random.Random(3)
        disk.lose_power(chance)
        left.append([(state / name).read_bytes() for name in names])
        following.add(chance.random())
    assert left[0] == left[1]
    assert len({*left[0]}) == 2
    assert len(following) == 1
