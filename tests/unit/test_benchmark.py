"""The benchmark: its load client notices what a server loses and doubles, and its table reads what is measured."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bench import native, postgres
from bench.fleet import Fleet, combined
from bench.histogram import SHARES, merged
from bench.load import LoadFailed, Publish, Publisher, StreamClient, verify
from bench.payload import EVENT_BYTES, KEYED_ITEM, SENT_BASE, SEQ_BASE
from bench.results import Result
from bench.scenarios import SCENARIOS
from bench.slow_readers import SlowReaders
from bench.targets import GROUPS, Measured, Target
from sse_app.core.json_text import to_json
from tests.support.programs import require, unavailable
from tests.support.scripted_server import HOURS, Answer, ScriptedServer, connected, frame, scripted_server
from tests.support.waiting import until


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The load programs, compiled elsewhere than where others may be in use."""
    require("gcc")
    patch = pytest.MonkeyPatch()
    patch.setattr(native, "BUILD", tmp_path_factory.mktemp("bench"))
    native.build()
    yield
    patch.undo()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server that answers as told."""
    with scripted_server() as server:
        yield server


def _port(server: ScriptedServer) -> int:
    return int(server.url.rpartition(":")[2])


def _events(*numbers: int) -> str:
    return "".join(
        frame("tick", {"seq": SEQ_BASE + number, "sent": SENT_BASE + 1}, f"e-{number}") for number in numbers
    )


def _stream(*numbers: int, hold: float = HOURS) -> Answer:
    return Answer(body=connected("e-0", recovered=True) + _events(*numbers), hold=hold)


def _wait(client: StreamClient | Fleet, name: str, count: int) -> dict[str, Any]:
    until(lambda: client.ask("stats")[name] >= count, f"{count} {name}")
    return client.ask("stats")


@pytest.mark.ci
@pytest.mark.parametrize(
    ("numbers", "gaps", "duplicates"),
    [((1, 2, 3), 0, 0), ((1, 2, 5), 2, 0), ((1, 2, 2), 0, 1), ((1, 3, 2), 1, 1)],
)
def test_the_load_client_counts_events_that_are_lost_and_that_come_twice(
    server: ScriptedServer, numbers: tuple[int, ...], gaps: int, duplicates: int
) -> None:
    server.answers = [_stream(*numbers)]
    with StreamClient(_port(server), ["/stream"], 1, ready="connected") as client:
        client.open()
        seen = _wait(client, "events", 3)
    assert (seen["gaps"], seen["duplicates"]) == (gaps, duplicates)
    if gaps or duplicates:
        with pytest.raises(LoadFailed, match="once and in order"):
            verify(seen, 3)
    else:
        verify(seen, 3)


@pytest.mark.parametrize(("again", "gaps", "duplicates"), [((3, 4), 0, 0), ((4,), 1, 0), ((2, 3, 4), 0, 1)])
def test_the_load_client_goes_on_counting_where_it_was_cut_off(
    server: ScriptedServer, again: tuple[int, ...], gaps: int, duplicates: int
) -> None:
    server.answers = [_stream(1, 2, hold=0), Answer(status=0), Answer(status=503), _stream(*again)]
    with StreamClient(_port(server), ["/stream"], 1, ready="connected") as client:
        client.open()
        _wait(client, "ended", 1)
        back = client.ask("return 10 30000", 30)
        assert (back["ready"], back["refused"]) == (1, 2)
        seen = _wait(client, "events", 2 + len(again))
    assert (seen["gaps"], seen["duplicates"]) == (gaps, duplicates)


def test_a_stream_that_lacks_an_event_the_others_have_is_no_success(server: ScriptedServer) -> None:
    server.answers = [_stream(1, 2), _stream(1)]
    with StreamClient(_port(server), ["/stream"], 2, ready="connected") as client:
        client.open(inflight=1)
        seen = _wait(client, "events", 3)
    assert (seen["fewest"], seen["most"]) == (1, 2)
    with pytest.raises(LoadFailed):
        verify(seen, 2)


def test_several_load_clients_report_as_one(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.fleet.STREAMS_PER_CLIENT", 2)
    server.answers = [_stream(1, 2)]
    paths = [f"/stream/{number}" for number in range(5)]
    with Fleet(_port(server), paths, 5, "connected") as fleet:
        assert fleet.grow(inflight=5) == ""
        seen = _wait(fleet, "events", 10)
        assert len(fleet.pids) == 3
    assert (seen["ready"], seen["fewest"], seen["most"], seen["gaps"]) == (5, 2, 2, 0)
    assert seen["latency_us"]["count"] == 10
    assert sorted(request.path for request in server.asked) == paths


def test_a_crowd_that_does_not_fit_says_why(server: ScriptedServer) -> None:
    server.answers = [_stream(1), Answer(status=429)]
    with Fleet(_port(server), ["/stream"], 2, "connected") as fleet:
        assert "429" in fleet.grow(inflight=1)
        assert fleet.streams == 1
    with Fleet(_port(server), ["/stream"], 2, "connected") as fleet:
        assert "of memory were left" in fleet.grow(inflight=1, least_available=1e12)


def test_histograms_of_one_client_are_what_it_prints_itself(server: ScriptedServer) -> None:
    server.answers = [_stream(*range(1, 200))]
    with StreamClient(_port(server), ["/stream"], 3, ready="connected") as client:
        client.ask("buckets 1")
        client.open()
        seen = _wait(client, "events", 3 * 199)
    for name in ("latency_us", "opening_us"):
        again = merged([seen], name)
        assert again["count"] == seen[name]["count"] > 0
        assert all(abs(again[share] - seen[name][share]) <= 0.051 for share in SHARES)
        assert combined([seen, seen])[name]["p50"] == again["p50"]


def test_keys_are_published_in_turn_in_events_of_one_length() -> None:
    bodies: list[bytes] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(201)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Taker) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        publish = Publish(server.server_port, "/", KEYED_ITEM, "[", ",", "]", batch=4, keys=3)
        Publisher(publish, 2).result()
        server.shutdown()
        thread.join()
    events = [event for body in bodies for event in json.loads(body)]
    assert [(event["seq"] - SEQ_BASE, event["symbol"]) for event in events] == [
        (number, f"S{number % 3:04}") for number in range(1, 9)
    ]
    assert len(bodies[0]) == 4 * EVENT_BYTES + len("[,,,]")


def _keyed(*numbers: int) -> str:
    sent = SENT_BASE + time.monotonic_ns() // 1000 - 250_000
    return "".join(
        f"data: {to_json({'seq': SEQ_BASE + number, 'sent': sent, 'symbol': f'S{number % 3}'}).decode()}\n\n"
        for number in numbers
    )


def test_a_slow_reader_knows_the_newest_of_each_key_and_its_age(server: ScriptedServer) -> None:
    server.answers = [Answer(body=connected("e-0") + _keyed(1, 2, 3, 4), hold=HOURS)]
    with SlowReaders(_port(server), ["/stream"], 1e6) as slow:
        (reader,) = slow.readers
        until(lambda: reader.events == 4, "it has read all")
        assert slow.wait_for(4, 3, 30.0) < 30.0
        assert slow.complete(4, 3) == 100.0
        assert slow.complete(5, 3) == pytest.approx(200 / 3), "S2 should have had its fifth event"
    assert reader.is_open
    assert reader.disordered == 0
    assert all(250 <= age < 120_000 for age in reader.ages)


def test_a_slow_reader_notices_that_it_is_cut_off_and_what_is_not_in_order(server: ScriptedServer) -> None:
    server.answers = [Answer(body=connected("e-0") + _keyed(1, 3, 2, 2), hold=0)]
    with SlowReaders(_port(server), ["/stream"], 1e6) as slow:
        (reader,) = slow.readers
        until(lambda: not reader.is_open, "the stream has ended")
    assert (reader.events, reader.disordered) == (4, 2)


def test_a_slow_reader_reads_no_more_than_its_rate(server: ScriptedServer) -> None:
    server.answers = [Answer(body=connected("e-0") + _keyed(*range(1, 5_000)), hold=HOURS)]
    rate, began = 20_000, time.monotonic()
    with SlowReaders(_port(server), ["/stream"], rate) as slow:
        (reader,) = slow.readers
        until(lambda: reader.events >= 100, "it has read some")
    size = len(_keyed(*range(1, reader.events + 1)))
    assert 0 < size <= (time.monotonic() - began) * rate + 8_192  # which may have come with the head


@pytest.mark.slow
def test_the_database_of_the_benchmark_says_what_it_has_done_and_leaves_nothing_behind() -> None:
    if reason := postgres.missing():
        unavailable(reason)
    with postgres.postgres() as database:
        before = database.transactions(), database.cpu_seconds()
        with psycopg.connect(database.url) as connection:
            connection.execute("SELECT sum(n) FROM generate_series(1, 200000) AS n")
        until(lambda: database.transactions() > before[0] + 1, "the query has been counted")
        assert database.cpu_seconds() > before[1] + 0.01  # the server process that did it has ended
        pids, directory = database.processes.pids(), database.directory
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not directory.exists()


class _Everything(dict[str, float]):
    """A sample that has all there is to measure."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> float:
        return 1.0

    def get(self, name: str, default: object = None) -> Any:
        return 1.0


def test_every_line_of_the_table_finds_its_figure_among_those_of_its_scenarios() -> None:
    results = {
        name: Result(
            name,
            False,
            "",
            "",
            {},
            samples={variant.key: [_Everything(any=1.0)] for variant in scenario.variants},
        )
        for name, scenario in SCENARIOS.items()
    }
    for name in ("handover", "handover-workers"):
        samples: dict[str, Any] = {variant: [_Everything(any=1.0)] for variant in ("restart", "upgrade")}
        results[name] = Result(name, False, "", "", {}, samples=samples)
    targets = [target for group in GROUPS for target in group.targets]
    assert [target.line for target in targets if target.value(results) is None] == []
    assert [target.line for target in targets if target.value({}) is not None] == []


@pytest.mark.parametrize(
    ("value", "higher", "verdict"),
    [
        (0.7, False, "yes, and the aim"),
        (0.8, False, "yes"),
        (0.86, False, "**no**"),
        (0.7, True, "**no**"),
        (0.86, True, "yes"),
    ],
)
def test_a_line_is_met_where_its_figure_is_on_the_right_side_of_bound_and_aim(
    value: float, higher: bool, verdict: str
) -> None:
    bound, aim = (0.85, 0.9) if higher else (0.85, 0.75)
    target = Target("line", "{:.2f} ×", bound, aim, lambda results: None, higher)  # noqa: RUF001
    assert target.verdict(Measured(value, "")) == verdict
    assert target.verdict(None) == ""
