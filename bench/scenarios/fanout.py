"""Fan-out to 1,000 and 10,000 streams, one event a request and in batches of 100; the connect storm."""

from __future__ import annotations

from functools import partial

from bench.measure import Sample, connect, fan_out, running, stream_client
from bench.run import Run
from bench.scenarios.scenario import STREAM_SERVERS, Column, Scenario, Variant, servers
from bench.servers import Options

_COLUMNS = (
    Column("cpu_us", "server CPU, µs a delivery", 2),
    Column("p50_ms", "p50 ms"),
    Column("p99_ms", "p99 ms"),
    Column("client_cpu_us", "client CPU, µs a delivery", 2),
    Column("publisher_cpu_us", "publisher CPU, µs an event", 1),
    Column("bytes_per_delivery", "bytes a delivery", 0),
    Column("stolen_percent", "stolen %"),
    Column("others_percent", "others %"),
)
_FAST = ("sse_app", "floor", "nchan")
_SLOW = tuple(name for name in STREAM_SERVERS if name not in _FAST)


def _measure(
    streams: int, events: int, rate: float, batch: int, workers: int, server_name: str, run: Run
) -> Sample:
    streams = run.pick(max(100, streams // 10), streams, streams)
    events = run.pick(max(batch * 2, events // 10), max(batch * 2, events // 2), events)
    options = Options(workers=workers)
    with running(server_name, options) as server, stream_client(server, streams) as client:
        return {**connect(server, client), **fan_out(server, client, events, rate, batch)}


def _measure_batches(
    streams: int, batches: int, rate: float, alone: int, server_name: str, run: Run
) -> Sample:
    from bench.servers import SERVERS

    events = batches * 100 if SERVERS[server_name].batches else alone
    return _measure(streams, events, rate, 100, 1, server_name, run)


def _connect(streams: int, foreign_tokens: bool, server_name: str, run: Run) -> Sample:
    streams = run.pick(streams // 20, streams, streams)
    options = Options(foreign_tokens=foreign_tokens)
    with running(server_name, options) as server, stream_client(server, streams) as client:
        return connect(server, client)


_CONNECT = partial(_connect, 10_000, False)
_THOUSAND = partial(_measure, 1_000, 60, 10.0, 1)
_TEN_THOUSAND = partial(_measure, 10_000, 40, 4.0, 1)


SCENARIOS = (
    Scenario(
        "fanout-1000",
        "Fan-out to 1,000 streams, one event a request",
        "60 events at 10 a second, each to 1,000 streams. sse_app and nchan also run with two workers, over which "
        "the streams are spread.",
        (
            *servers("sse_app", "nchan"),
            Variant("sse_app", "2 workers", partial(_THOUSAND, 2)),
            Variant("nchan", "2 workers", partial(_THOUSAND, 2)),
            *servers("floor", *_SLOW, once=True),
        ),
        _COLUMNS,
        partial(_THOUSAND, 1),
        plot="cpu_us",
        rounds=3,
        quick=True,
    ),
    Scenario(
        "fanout-1000-batch",
        "Fan-out to 1,000 streams, batches of 100",
        "20 batches of 100 events, two batches a second, each to 1,000 streams. nchan has no batches: "
        "1,000 events one after the other, as fast as it answers.",
        servers(*_FAST),
        _COLUMNS,
        partial(_measure_batches, 1_000, 20, 2.0, 1_000),
        plot="cpu_us",
    ),
    Scenario(
        "fanout-10000",
        "Fan-out and latency at 10,000 streams, 4 events a second",
        "40 events at 4 a second, each to 10,000 streams. sse_app and nchan also run with two workers. Latency is "
        "from just before the request is sent to the moment the client has read the event. Servers that may need "
        "more than a core for this are left out unless named with --peers.",
        (
            *servers("sse_app", "nchan"),
            Variant("sse_app", "2 workers", partial(_TEN_THOUSAND, 2)),
            Variant("nchan", "2 workers", partial(_TEN_THOUSAND, 2)),
            *servers("floor", *_SLOW, once=True),
        ),
        _COLUMNS,
        partial(_TEN_THOUSAND, 1),
        plot="p99_ms",
        rounds=2,
        quick=True,
        default=_FAST,
    ),
    Scenario(
        "fanout-10000-batch",
        "Fan-out to 10,000 streams, batches of 100",
        "6 batches of 100 events, one every two seconds, each to 10,000 streams. nchan has no batches: "
        "100 events one after the other, as fast as it answers.",
        servers(*_FAST),
        _COLUMNS,
        partial(_measure_batches, 10_000, 6, 0.5, 100),
        plot="cpu_us",
        rounds=1,
    ),
    Scenario(
        "connect",
        "Connect storm",
        "10,000 streams connect, 100 at a time. Only sse_app checks a token, and each stream has its own. The "
        "server's own `/api/v1/auth/stream-token` has issued it, as browsers get theirs. In the last line it was "
        "signed elsewhere with the server's key, so the server has never seen it.",
        (
            *servers("sse_app", "nchan"),
            Variant("sse_app", "tokens never seen", partial(_connect, 10_000, True), once=True),
            *servers("floor", *_SLOW, once=True),
        ),
        (
            Column("connect_cpu_us", "server CPU, µs a connect", 0),
            Column("connects_per_s", "connects a second", 0),
            Column("connect_p99_ms", "p99 ms to ready"),
            Column("rss_kib_per_stream", "RSS, KiB a stream"),
            Column("pss_kib_per_stream", "PSS, KiB a stream"),
            Column("connect_stolen_percent", "stolen %"),
        ),
        _CONNECT,
        plot="connect_cpu_us",
        quick=True,
        default=tuple(name for name in STREAM_SERVERS if name not in ("floor", "pushpin")),
    ),
)
