"""Fan-out to 1,000 and 10,000 streams, one event a request and in batches of 100; the connect storm."""

from __future__ import annotations

from functools import partial

from bench.measure import Sample, connect, fan_out, running, stream_client
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


def _measure(streams: int, events: int, rate: float, batch: int, server_name: str, quick: bool) -> Sample:
    if quick:
        streams, events = max(100, streams // 10), max(batch * 2, events // 10)
    with running(server_name) as server, stream_client(server, streams) as client:
        return {**connect(server, client), **fan_out(server, client, events, rate, batch)}


def _measure_batches(
    streams: int, batches: int, rate: float, alone: int, server_name: str, quick: bool
) -> Sample:
    from bench.servers import SERVERS

    events = batches * 100 if SERVERS[server_name].batches else alone
    return _measure(streams, events, rate, 100, server_name, quick)


def _connect(streams: int, foreign_tokens: bool, server_name: str, quick: bool) -> Sample:
    streams = streams // 20 if quick else streams
    options = Options(foreign_tokens=foreign_tokens)
    with running(server_name, options) as server, stream_client(server, streams) as client:
        return connect(server, client)


_CONNECT = partial(_connect, 10_000, False)


SCENARIOS = (
    Scenario(
        "fanout-1000",
        "Fan-out to 1,000 streams, one event a request",
        "60 events at 10 a second, each to 1,000 streams.",
        servers(*STREAM_SERVERS),
        _COLUMNS,
        partial(_measure, 1_000, 60, 10.0, 1),
        plot="cpu_us",
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
        "40 events at 4 a second, each to 10,000 streams. Latency is from just before the request is sent to "
        "the moment the client has read the event. Servers that may need more than a core for this are left "
        "out unless named with --peers.",
        servers(*STREAM_SERVERS),
        _COLUMNS,
        partial(_measure, 10_000, 40, 4.0, 1),
        plot="p99_ms",
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
    ),
    Scenario(
        "connect",
        "Connect storm",
        "10,000 streams connect, 100 at a time. Only sse_app checks a token, and each stream has its own: "
        "issued by the server's own `/api/v1/auth/stream-token`, as browsers get theirs, or signed elsewhere "
        "with the server's key, so that it has never seen them.",
        (
            *servers(*STREAM_SERVERS),
            Variant("sse_app", "tokens never seen", partial(_connect, 10_000, True)),
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
        default=tuple(name for name in STREAM_SERVERS if name not in ("floor", "pushpin")),
    ),
)
