"""The periodic sweep over the streams: pings, the end of dead ones, and the expiry of tokens."""

from __future__ import annotations

import random
import time

from tornado.ioloop import PeriodicCallback

from sse_app.auth.tokens.claims import Lease
from sse_app.core.events import timestamp
from sse_app.core.framing import framed
from sse_app.core.sse import encode_json
from sse_app.settings.model import KeepaliveSettings
from sse_app.streams.hub import Hub
from sse_app.streams.stream import Stream

MAX_TICK = 0.25
"""The longest time between two steps of the sweep, in seconds."""

CLOSING_TIMEOUT = 5.0
"""How long a stream that is being ended may take to accept its ``closing``, in seconds."""


class Keepalive:
    """Visits a part of the streams at each tick, so that 10,000 pings spread over the interval.

    Each stream has its turn in the round, which takes one ping interval. A stream whose socket has accepted
    nothing for two intervals is dead; the kernel's timers find most dead clients before that.

    Args:
        hub: whose streams.
        settings: how often a stream is pinged; fixed for the life of the process.
    """

    def __init__(self, hub: Hub, settings: KeepaliveSettings) -> None:
        self._hub = hub
        self._interval = interval = settings.ping_interval
        self._tick = min(MAX_TICK, interval / 8)
        self._turns: list[set[Stream]] = [set() for _ in range(round(interval / self._tick))]
        self._turn = 0
        self._expiring: dict[int, set[Stream]] = {}
        self._checked = int(time.time())
        self.pings = 0
        self._callback = PeriodicCallback(self.sweep, self._tick * 1000)

    def start(self) -> None:
        """Begin to sweep."""
        if not self._callback.is_running():
            self._callback.start()

    def stop(self) -> None:
        """Stop sweeping."""
        self._callback.stop()

    def watch(self, stream: Stream) -> None:
        """Take a stream into the round; its first ping comes within an interval."""
        stream.ping_turn = int(random.random() * len(self._turns))
        self._turns[stream.ping_turn].add(stream)
        self._expect_expiry(stream)

    def forget(self, stream: Stream) -> None:
        """Take a stream out of the round."""
        if stream.ping_turn >= 0:
            self._turns[stream.ping_turn].discard(stream)
        self._expect_no_expiry(stream)

    def renew(self, stream: Stream, lease: Lease) -> None:
        """Extend a stream to the expiry of a fresh token."""
        self._expect_no_expiry(stream)
        stream.subscriber = stream.subscriber.renewed(lease, time.time())
        self._expect_expiry(stream)

    def _expect_expiry(self, stream: Stream) -> None:
        second = int(stream.subscriber.lease.expires_at)
        if second < self._checked:
            stream.end("token_expired", None)
        elif (expiring := self._expiring.get(second)) is None:
            self._expiring[second] = {stream}
        else:
            expiring.add(stream)

    def _expect_no_expiry(self, stream: Stream) -> None:
        second = int(stream.subscriber.lease.expires_at)
        if (expiring := self._expiring.get(second)) is not None:
            expiring.discard(stream)
            if not expiring:
                del self._expiring[second]

    def sweep(self) -> None:
        """End the streams whose tokens have expired, close the dead ones, and ping those whose turn it is."""
        self._end_expired(time.time())
        self._reap(time.monotonic())
        self._ping()

    def _end_expired(self, now: float) -> None:
        while self._checked <= now:
            for stream in self._expiring.pop(self._checked, ()):
                stream.end("token_expired", None)
            self._checked += 1

    def _reap(self, now: float) -> None:
        stalled = now - 2 * self._interval + 2 * self._tick
        leaving = now - min(CLOSING_TIMEOUT, 2 * self._interval)
        for stream in list(self._hub.laggards):
            if stream.stalled_since < (stalled if stream.ending is None else leaving):
                stream.ending = stream.ending or "stalled"
                stream.close()

    def _ping(self) -> None:
        self._turn = (self._turn + 1) % len(self._turns)
        turn = self._turns[self._turn]
        if not turn:
            return
        ping = framed(encode_json("ping", {"timestamp": timestamp(time.time())}))
        for stream in turn:
            stream.write(ping(stream.framing))
        self.pings += len(turn)
