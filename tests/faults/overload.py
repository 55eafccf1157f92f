"""Overload: what the machine carries is measured in the run, and twice as much is sent."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing, suppress
from itertools import pairwise
from statistics import median

import httpx
import msgspec

from tests.faults.flood import Flooded
from tests.faults.run import Needs, Run
from tests.faults.traffic import CHANNELS, QUIET, TTL
from tests.support.fleet import Client
from tests.support.repeated import Repeated, repeating
from tests.support.upgradable import Upgradable
from tests.support.usage import MEBIBYTE, Usage
from tests.support.waiting import until

NEEDS = Needs(
    settings={"LIMITS__STREAMS": 1000, "LIMITS__CONNECTIONS": 240, "POSTGRES__TIMEOUT": 5},
    publishers={"pause": 0.2},
    clients={"stays": 600.0, "reads": 65_536},
    listeners=4,
)
"""Of the connections half may wait with a publish. A query has as long as by default, and not a second as in
other tests: what is overloaded is not the database."""

MEASURED, FLOODED = 1.5, 3.0
"""For how many seconds the capacity is measured, and twice as much is sent."""

ATTEMPTS = 3
"""So often it is tried to send more than is carried."""

BATCH, SIZE = 25, 100
"""Events of a request, and the bytes that each is larger."""

PROBED_WITHIN, OPENED_WITHIN, PINGS_WITHIN, DELAYED_WITHIN, WELL_WITHIN = 10.0, 20.0, 15.0, 30.0, 20.0
"""Seconds: bounds on a machine that others use too. A ping is due each second."""

MOST_MORE = 300
"""By how many MiB the memory of a server may grow."""

PROBES = ("/healthz", "/readyz", "/metrics")


def overload(run: Run) -> None:
    """Twice the rate of publishes that was acknowledged, whatever is answered, and new streams beside."""
    capacity = _flood(run, "closed", seconds=MEASURED, connections=25 * len(run.servers))
    per_second = capacity.acknowledged / MEASURED
    with closing(Listener(run)) as listener:
        before = median(listener.time_of_an_event() for _ in range(10))
        watched = [Probes(server) for server in run.servers]
        newcomers = Newcomers(run)
        held = [Usage(server.pid).resident for server in run.servers]
        run.harmed()
        begun = time.monotonic()
        with closing(newcomers), repeating(*watched, newcomers):
            for attempt in range(1, ATTEMPTS + 1):
                flooded = _flood(
                    run,
                    f"open-{attempt}",
                    rate=2 * per_second / BATCH,
                    seconds=attempt * FLOODED,  # what is too much has to fill what may wait
                    connections=200 * len(run.servers),
                )
                if refused := flooded.statuses.get(503, 0):
                    break
                # The machine was busier before: it carries more than was measured.
                per_second = max(per_second, flooded.acknowledged / flooded.seconds)
        ended = time.monotonic()
        after = listener.time_of_an_event()
        while after > max(5 * before, 0.2):
            assert time.monotonic() < ended + WELL_WITHIN, f"an event takes {after} s, before {before} s"
            after = listener.time_of_an_event()
        well_after = time.monotonic() - ended
        longest_pause = listener.longest_pause(begun, ended)
    answered = sum(flooded.statuses.values())
    more = max(probes.most_resident - resident for probes, resident in zip(watched, held, strict=True))
    longest = max(probes.longest for probes in watched)
    run.figures = {
        "capacity, events/s": round(per_second),
        "offered, events/s": round(flooded.sent * BATCH / flooded.seconds),
        "refused, %": round(100 * refused / answered),
        "acknowledged after, median s": round(median(flooded.delays), 2),
        "99 of 100 s": round(flooded.delays[int(0.99 * len(flooded.delays))], 2),
        "refused within s": round(flooded.refused_within, 2),
        "probes within s": round(longest, 2),
        "new streams within s": round(newcomers.longest, 2),
        "pings apart s": round(longest_pause, 2),
        "memory, MiB more": max(0, round(more / MEBIBYTE)),
        "well again after s": round(well_after, 2),
    }
    assert set(flooded.statuses) <= {201, 503}, flooded.statuses
    assert flooded.bare == 0
    assert refused, run.figures
    assert flooded.delays[-1] < DELAYED_WITHIN, run.figures
    assert longest < PROBED_WITHIN, run.figures
    assert newcomers.longest < OPENED_WITHIN, run.figures
    assert longest_pause < PINGS_WITHIN, run.figures
    assert more < MOST_MORE * MEBIBYTE, run.figures


def _flood(run: Run, name: str, **settings: float) -> Flooded:
    process = run.traffic.launch_flood(
        f"publisher-flood-{name}-{run.chance.getrandbits(60)}", batch=BATCH, size=SIZE, **settings
    )
    printed, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    return msgspec.json.decode(printed, type=Flooded)


class Probes(Repeated):
    """Asks for a server's health on new connections, and looks at its memory."""

    def __init__(self, server: Upgradable) -> None:
        super().__init__(self.act, pause=0.1)
        self.longest = 0.0
        self.most_resident = 0
        self._server = server

    def act(self) -> None:
        """Do it once."""
        for path in PROBES:
            begun = time.monotonic()
            answer = httpx.get(f"{self._server.url}{path}", timeout=60)
            assert answer.status_code == 200, f"{path}: {answer.text}"
            self.longest = max(self.longest, time.monotonic() - begun)
        self.most_resident = max(self.most_resident, Usage(self._server.pid).resident)


def _has_begun(stream: Client) -> bool:
    stream.read()
    assert stream.ended is None, stream.ended
    return b"event: connected" in stream.received


class Newcomers(Repeated):
    """Opens streams, and keeps the last ones."""

    KEPT = 20

    def __init__(self, run: Run) -> None:
        super().__init__(self.act, pause=0.1)
        self.longest = 0.0
        self._servers = run.servers
        self._path = f"/api/v1/sse/{CHANNELS[0]}?token={run.servers[0].stream_token(CHANNELS[0], ttl=TTL)}"
        self._streams: list[Client] = []
        self._count = 0

    def act(self) -> None:
        """Open one more."""
        begun = time.monotonic()
        self._count += 1
        stream = Client(self._servers[self._count % len(self._servers)].port, self._path)
        self._streams.append(stream)
        until(lambda: _has_begun(stream), "a stream begins", pause=0.005)
        self.longest = max(self.longest, time.monotonic() - begun)
        for old in self._streams[: -self.KEPT]:
            old.socket.close()
        del self._streams[: -self.KEPT]

    def close(self) -> None:
        """Close the streams."""
        for stream in self._streams:
            stream.socket.close()


class Listener(threading.Thread):
    """Has a stream on a channel that is not flooded, from its beginning until it is closed."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._name = f"publisher-lone-{run.chance.getrandbits(60)}"
        self._publisher = run.traffic.publisher_here(self._name)
        server = run.servers[-1]
        self._stream = Client(server.port, f"/api/v1/sse/{QUIET}?token={server.stream_token(QUIET, ttl=TTL)}")
        self._stream.read_until("event: connected")
        self._stream.socket.setblocking(True)
        self._pings: list[float] = []
        self._arrived = threading.Condition()
        self._count = 0
        self.start()

    def run(self) -> None:
        """Read it."""
        with suppress(ConnectionResetError):
            while piece := self._stream.socket.recv(65_536):
                with self._arrived:
                    self._stream.received += piece
                    self._pings += [time.monotonic()] * piece.count(b"event: ping")
                    self._arrived.notify()

    def time_of_an_event(self) -> float:
        """Return how many seconds an event takes from the request until it has come."""
        self._count += 1
        name = f"{self._name}.{self._count}"
        begun = time.monotonic()
        self._publisher.publish(name, [(QUIET, name)])
        with self._arrived:
            assert self._arrived.wait_for(lambda: f'"{name}"'.encode() in self._stream.received, 60)
        return time.monotonic() - begun

    def longest_pause(self, begun: float, ended: float) -> float:
        """Return the longest time without a ping between two moments, in seconds."""
        pings = [begun, *(at for at in self._pings if begun < at < ended), ended]
        return max(later - earlier for earlier, later in pairwise(pings))

    def close(self) -> None:
        """End it."""
        self._stream.socket.shutdown(socket.SHUT_RDWR)
        self.join()
        self._stream.socket.close()
        self._publisher.close()
