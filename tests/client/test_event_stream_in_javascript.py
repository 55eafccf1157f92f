"""The parser of the browser client, by the cases of the Python client's: the standard's, and the contract tests'."""

from __future__ import annotations

import base64
import json
import random
import subprocess
from typing import Any

import pytest

from tests.client.test_event_stream import CASES
from tests.support.programs import require
from tests.support.server_process import ROOT

pytestmark = pytest.mark.node

LOAD = """
import { readFileSync } from "node:fs";
const source = readFileSync(process.argv[1], "utf8");
const { makeParser } = await import(`data:text/javascript,${encodeURIComponent(source)}`);
"""

PARSE = """
const streams = JSON.parse(readFileSync(0, "utf8"));
const answers = streams.map(([content, cuts]) => {
  const bytes = Buffer.from(content, "base64");
  const decoder = new TextDecoder();
  const read = makeParser();
  const events = [];
  [...cuts, bytes.length].reduce((start, end) => {
    for (const { type, data = null, own = null, id = null, retry = null } of read(
      decoder.decode(bytes.subarray(start, end), { stream: true }),
    )) {
      events.push([type, data, own, id, retry]);
    }
    return end;
  }, 0);
  return events;
});
console.log(JSON.stringify(answers));
"""

Parsed = list[tuple[str, str | None, str | None]]


def node(script: str, given: str = "") -> str:
    """Run a script that has the parser, and return what it prints."""
    parser = str(ROOT / "sse_app/static/sse-parser.js")
    command = [require("node"), "--input-type=module", "--eval", LOAD + script, parser]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def parse(streams: list[tuple[bytes, list[int]]]) -> list[list[list[Any]]]:
    """Return what each stream has, cut at these places: type, data, own id, last id and retry."""
    given = [(base64.b64encode(content).decode(), cuts) for content, cuts in streams]
    answers: list[list[list[Any]]] = json.loads(node(PARSE, json.dumps(given)))
    return answers


def encoded(stream: str | bytes, end: bytes = b"\n") -> bytes:
    return (stream.encode() if isinstance(stream, str) else stream).replace(b"\n", end)


def test_each_stream_is_read_in_pieces_of_any_size_with_each_end_of_lines() -> None:
    wanted: list[tuple[str, Parsed]] = []
    streams: list[tuple[bytes, list[int]]] = []
    for name, (stream, events) in CASES.items():
        for end in (b"\n", b"\r\n", b"\r"):
            content = encoded(stream, end)
            for size in (len(content), 1, 2, 3, 7):
                wanted.append((f"{name}, {end!r}, {size}", events))
                streams.append((content, [*range(size, len(content), size)]))
    for (name, events), answer in zip(wanted, parse(streams), strict=True):
        told = [(type, data, own) for type, data, own, _, _ in answer if (data, own) != (None, None)]
        assert told == events, name


def test_where_a_stream_is_cut_does_not_matter() -> None:
    chance = random.Random(17)
    contents = [
        ("data: " + "".join(chance.choices("a: \r\n\0\ufeffé😀", k=60)) + "\n\n").encode() * 2
        for _ in range(300)
    ]
    cut = [(content, sorted(chance.choices(range(len(content)), k=8))) for content in contents]
    whole: list[tuple[bytes, list[int]]] = [(content, []) for content in contents]
    assert parse(cut) == parse(whole)


def test_the_last_id_stays_until_another_one_comes_and_counts_once_its_event_is_complete() -> None:
    stream = (
        b"id: 1\ndata: a\n\ndata: b\n\nid: 2\n\ndata: c\n\nid\ndata: d\n\nid: x\0y\ndata: e\n\nid: 3\ndata: f"
    )
    (answer,) = parse([(stream, [])])
    assert [(data, own, id) for _, data, own, id, _ in answer] == [
        ("a", "1", "1"),
        ("b", None, "1"),
        (None, "2", "2"),
        ("c", None, "2"),
        ("d", "", ""),
        ("e", None, ""),
    ]


def test_a_retry_is_digits_alone() -> None:
    values = {
        "5000": 5000,
        "0": 0,
        "007": 7,
        **dict.fromkeys(["", "  5", "-5", "+5", "5.0", "1e3", "0x5", "\u0665"]),
    }
    streams: list[tuple[bytes, list[int]]] = [(f"retry:{value}\n\n".encode(), []) for value in values]
    assert [answer[0][4] for answer in parse(streams)] == [*values.values()]


@pytest.mark.slow
def test_a_long_event_in_small_pieces_takes_time_in_proportion_to_its_length() -> None:
    """Fifty million characters: were the line copied for each piece, this would take hours."""
    script = """
        const [read, piece, count] = [makeParser(), "x".repeat(100), 500_000];
        const ends = (text) => [...read(text)].map(({ data }) => data.length);
        const told = [ends("data: ")];
        for (let n = 0; n < count; n++) if (ends(piece).length) throw new Error("it has not ended");
        told.push(ends("\\n\\n"));
        for (let n = 0; n < count; n++) if (ends("data: x\\n").length) throw new Error("it has not ended");
        told.push(ends("\\r"));
        console.log(JSON.stringify(told));
    """
    assert json.loads(node(script)) == [[], [50_000_000], [999_999]]
