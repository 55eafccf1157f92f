"""Clients that begin anywhere, drop and come back, and an account of what each of them was due.

All that is published is repeated with its key until it is acknowledged, so each event's id is known, whatever is killed
meanwhile. What a client is sent is then compared, channel by channel, with the run of events that its position or
beginning, and what is kept of the channel, allow for. Where something happens at the same time as something else both
orders are allowed.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

from sse_app.core.channels import ChannelPattern
from tests.support.repeated import Repeated
from tests.support.room import sequence
from tests.support.server_process import ServerProcess
from tests.support.sse_reader import EventStreamReader, ReceivedEvent
from tests.support.waiting import until

KEPT_EVENTS = 4
"""How many events are kept of a channel of the kind ``size``."""

KEPT_SECONDS = 0.5
"""For how long an event is kept of a channel of the kind ``age``."""

CHANNELS: list[dict[str, Any]] = [
    {"pattern": "*.size.*", "history_size": KEPT_EVENTS},
    {"pattern": "*.age.*", "history_age": KEPT_SECONDS},
    {"pattern": "*.last.*", "last_value_only": True},
    {"pattern": "*.table.*", "conflate": "key"},
    {"pattern": "*.gone.*", "stored": False},
    {"pattern": "*.all.*"},
]
"""The settings of the channels that `Account` publishes on: of each kind, by their second segment."""

KINDS = ("size", "age", "last", "table", "all")
"""The kinds of channels whose events are stored."""

TYPES = ("a", "b")
END = "end"
"""The type of the last event of each channel, which each client asks for."""

ROUNDING = 0.01
"""Seconds by which a time in the log may differ from that of the test, which is more exact."""

LAG = 10.0
"""Within how many seconds a process has fanned out what was acknowledged: its head is that of its streams."""

CREEP = 0.002
"""Seconds between two events of a publisher in the background."""


@dataclass(slots=True)
class Published:
    """An event that was acknowledged.

    Attributes:
        begun, ended: when it was first sent, and when it was acknowledged.
        key: its key on a conflated channel.
    """

    id: str
    channel: str
    type: str
    data: Any
    begun: float
    ended: float
    key: Any = None

    @property
    def number(self) -> int:
        """Its number in the log."""
        return sequence(self.id)

    def is_on_the_wire_as(self, event: ReceivedEvent) -> bool:
        """Return whether a client was sent what was published."""
        if event.type != self.type:
            return False
        if isinstance(self.data, str):
            return event.data == self.data.replace("\r\n", "\n").replace("\r", "\n")
        if isinstance(self.data, dict):
            sent = event.json()
            return sent["channel"] == self.channel and self.data.items() <= sent.items()  # type: ignore[no-any-return]
        return bool(event.json() == self.data)


@dataclass(slots=True)
class Stream:
    """A stream of a client, and what came on it, with the times.

    Attributes:
        asked: when it was asked for.
        position: that it was opened with.
    """

    asked: float
    position: str | None
    events: list[tuple[float, ReceivedEvent]] = field(default_factory=list)


class Client:
    """A client that has one stream after another.

    Args:
        servers: where it listens.
        channels: names and patterns.
        types: the event types that it asks for; all where there are none.
        beginning: the query's ``from``, ``last`` or ``since``, or ``last_event_id``; it stays in the URL
            as a browser's does.
        rate: the query's, if it is not empty.
    """

    def __init__(
        self,
        servers: Sequence[ServerProcess],
        token: str,
        channels: Sequence[str],
        types: Sequence[str],
        beginning: Mapping[str, str],
        rate: str = "",
    ) -> None:
        self.channels, self.types, self.beginning, self.rate = channels, types, beginning, rate
        self.streams: list[Stream] = []
        self.position = ""
        self._servers, self._token = servers, token
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __repr__(self) -> str:
        return f"Client({self.channels}, {self.types}, {self.beginning}, {self.rate!r})"

    @property
    def is_open(self) -> bool:
        """Whether it has a stream that has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def open(self, server: int, *, wait: bool = True) -> None:
        """Open a stream at one of the servers, which serves, if it has none that is open."""
        if self.is_open:
            return
        self.close()
        query = {**self.beginning}
        if self.types:
            query["types"] = ",".join([*self.types, END])
        if self.rate:
            query["rate"] = self.rate
        chosen = self._servers[server % len(self._servers)]
        url = chosen.stream_url(",".join(self.channels), self._token, **query)
        header = f"Last-Event-ID: {self.position}\r\n" if self.position else ""
        stream = Stream(time.time(), self.position or self.beginning.get("last_event_id"))
        self._socket = socket.create_connection(("127.0.0.1", chosen.port), 60)
        path = url.removeprefix(chosen.url)
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
        self.streams.append(stream)
        self._thread = threading.Thread(target=self._listen, args=(self._socket, stream), daemon=True)
        self._thread.start()
        if wait:
            until(lambda: stream.events or not self.is_open, "connected")

    def _listen(self, sock: socket.socket, stream: Stream) -> None:
        reader = EventStreamReader(texts=True)
        response = HTTPResponse(sock)
        try:
            response.begin()
            assert response.status == 200, (response.status, response.read())
            while piece := response.read1(65_536):
                now = time.time()
                for event in reader.feed(piece):
                    if event.id is not None:
                        self.position = event.id
                    stream.events.append((now, event))
        except (OSError, HTTPException):  # the server, or the test, has ended it
            pass
        except BaseException as error:
            self._failure = error
        finally:
            response.close()

    def close(self) -> None:
        """End the stream."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()
        if self._socket is not None:
            self._socket.close()
        self._socket = self._thread = None
        if self._failure is not None:
            raise self._failure

    def story(self) -> str:
        """Return all that its streams have carried, a line for each event."""
        return "\n\n".join(
            f"asked {one.asked} with {one.position}\n"
            + "\n".join(f"{at} {event}" for at, event in one.events)
            for one in self.streams
        )

    def has(self, id: str) -> bool:
        """Return whether an event of this id has come."""
        return any(
            event.id == id and event.type != "ping" for stream in self.streams for _, event in stream.events
        )

    def covers(self, channel: str) -> bool:
        """Return whether it has asked for a channel."""
        return any(ChannelPattern(asked).matches(channel) for asked in self.channels)


class Account:
    """What was published on the channels of one example, and what its clients were due of that.

    Args:
        servers: they run, and share one log and their keys.
        name: the first segment of all its channels; no other example has it.
        seed: of what is left to chance.
    """

    def __init__(self, servers: Sequence[ServerProcess], name: str, seed: int) -> None:
        self.servers, self.name, self.chance = servers, name, random.Random(seed)
        self.published: list[Published] = []
        self.clients: list[Client] = []
        self._headers = {"Authorization": f"Bearer {servers[0].access_token(ttl=6000)}"}
        self._token = servers[0].stream_token("**", ttl=6000)
        self._lock = threading.Lock()
        self._requests = 0
        self._unstored: dict[str, list[int]] = {}
        self._storm: Repeated | None = None
        self._after = ""

    # What is done

    def channel(self, kind: str, which: str) -> str:
        """Return the name of a channel."""
        return f"{self.name}.{kind}.{which}"

    def has_table(self, asked: str) -> bool:
        """Return whether a name or a pattern covers a conflated channel."""
        return ChannelPattern(asked).matches(self.channel("table", "a")) or asked == self.channel(
            "table", "b"
        )

    def publish(self, channels: Sequence[str], chance: random.Random | None = None) -> list[Published]:
        """Publish an event on each of the channels at once, and repeat that until it is acknowledged."""
        return self._publish([self._event(channel, chance or self.chance) for channel in channels])

    def _event(self, channel: str, chance: random.Random) -> dict[str, Any]:
        number = chance.randrange(1 << 40)
        data: Any = {"n": number, "key": chance.choice("xyz")}
        if ".table." not in channel:
            lines = chance.choice(("", "\n", "a\r\nb", "\rc\n\nd", "data: \u2028e"))
            data = chance.choice((data, data, f"{number}{lines}", [number], number, None))
        return {"channel": channel, "event": chance.choice(TYPES), "data": data}

    def _publish(self, events: Sequence[dict[str, Any]]) -> list[Published]:
        with self._lock:
            self._requests += 1
            key = f"{self.name}.{self._requests}"
        begun = time.time()
        while True:
            server = self.servers[self.chance.randrange(len(self.servers))]
            answer = self._send(server, "", {"events": events}, {"Idempotency-Key": key})
            if answer is not None:
                break
            time.sleep(0.02)
        ended = time.time()
        done = [
            Published(
                id,
                event["channel"],
                event["event"],
                event["data"],
                begun,
                ended,
                event["data"]["key"] if ".table." in event["channel"] else None,
            )
            for id, event in zip(answer["ids"], events, strict=True)
        ]
        with self._lock:
            self.published += done
        return done

    def _send(self, server: ServerProcess, path: str, content: object, headers: dict[str, str]) -> Any:
        """Return what a server answered; None where it must be asked again."""
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        try:
            connection.request("POST", f"/api/v1/sse{path}", json.dumps(content), self._headers | headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()
        if answer.status == 503:
            return None
        assert answer.status in (201, 202), (answer.status, body)
        return json.loads(body)

    def begin_storm(self, channels: Sequence[str]) -> None:
        """Publish in the background from now on."""
        if self._storm is None:
            chance = random.Random(self.chance.randrange(1 << 30))
            self._storm = Repeated(
                lambda: self.publish(chance.choices(channels, k=chance.choice((1, 1, 3))), chance), CREEP
            )
            self._storm.start()

    def end_storm(self) -> None:
        """Publish no more in the background."""
        if self._storm is not None:
            storm, self._storm = self._storm, None
            storm.stop()

    def open(
        self,
        channels: Sequence[str],
        types: Sequence[str],
        beginning: Mapping[str, str],
        rate: str,
        server: int,
    ) -> Client:
        """Have another client open its first stream."""
        client = Client(self.servers, self._token, channels, types, beginning, rate)
        self.clients.append(client)
        client.open(server)
        return client

    def close(self) -> None:
        """End all that goes on."""
        self.end_storm()
        for client in self.clients:
            client.close()

    def settle(self) -> None:
        """Have all clients come back, and wait until each has been sent an event that is published after that.

        A client may be turned away once more where what it missed is just being erased.
        """
        self.end_storm()
        names = sorted({event.channel for event in self.published})
        for _ in range(20):
            for number, client in enumerate(self.clients):
                client.open(number)
            ends = self._publish(
                [{"channel": name, "event": END, "data": {"n": 0, "key": "end"}} for name in names]
            )
            if all([self._waits_for(client, ends) for client in self.clients]):
                break
        else:
            raise AssertionError("clients are turned away again and again")
        for client in self.clients:
            if client.covers(self.channel("gone", "a")) and not client.types:
                until(lambda client=client: self._is_told_unstored(client), "what is not stored comes")  # type: ignore[misc]
        for client in self.clients:
            client.close()

    @staticmethod
    def _waits_for(client: Client, ends: Sequence[Published]) -> bool:
        """Return whether a client has been sent these events, as far as it asked for them, or its stream has ended."""
        due = [end.id for end in ends if client.covers(end.channel)]

        def has_come() -> bool:
            return not client.is_open or all(map(client.has, due))

        with suppress(AssertionError):
            until(has_come, "all has come")
        assert has_come(), f"{client} was not sent {due}\n{client.story()}"
        return all(map(client.has, due))

    def publish_unstored(self, which: str = "a") -> None:
        """Publish an event on a channel whose events are not stored; it may be lost."""
        channel = self.channel("gone", which)
        numbers = self._unstored.setdefault(channel, [])
        numbers.append(len(numbers))
        content = {"event": "u", "data": {"n": numbers[-1]}}
        self._send(self.servers[0], f"/{channel}", content, {})

    def _is_told_unstored(self, client: Client) -> bool:
        self.publish_unstored()
        time.sleep(0.02)
        return any(event.type == "u" for _, event in client.streams[-1].events)

    # What was due

    def check(self) -> None:
        """Compare what each client was sent with what it was due; call it after `settle`."""
        self.published.sort(key=lambda event: event.number)
        by_id = {event.id: event for event in self.published}
        assert len(by_id) == len(self.published), "an id for two events"
        channels: dict[str, list[Published]] = {}
        for event in self.published:
            channels.setdefault(event.channel, []).append(event)
        for client in self.clients:
            for stream in client.streams:
                self._check_frames(client, stream, by_id)
            for channel, events in channels.items():
                if client.covers(channel):
                    _Run(self, client, events).check()

    def _check_frames(self, client: Client, stream: Stream, by_id: Mapping[str, Published]) -> None:
        """Check all that concerns no channel alone."""
        if not stream.events:
            return
        _, first = stream.events[0]
        if first.type == "closing":
            assert first.json()["reason"] in ("shutdown", "unavailable"), first
            return
        assert first.type == "connected", (client, first)
        connected = first.json()
        tables = [asked for asked in client.channels if ".table." in asked]
        assert set(connected.get("conflated", [])) >= set(tables), (client, connected)
        resets = [event for _, event in stream.events if event.type == "reset"]
        assert stream.position is None or (first.id == stream.position), (client, stream.position, first)
        at_once = len(stream.events) > 1 and stream.events[1][1].type == "reset"
        assert connected["recovered"] == (stream.position is not None and not at_once), (client, stream)
        for reset in resets:
            named = reset.json()["channel"]
            assert reset.id is None
            assert named in client.channels or client.covers(named), (client, reset)
        before = sequence(first.id or "")
        unstored: dict[str, int] = {}
        for place, (_, event) in enumerate(stream.events[1:], 1):
            if event.type == "closing":
                assert place == len(stream.events) - 1, (client, stream)
            elif event.type == "u":
                data = event.json()
                assert event.id is None, (client, event)
                assert data["n"] > unstored.get(data["channel"], -1), (client, event)
                assert not client.types, (client, event)
                assert client.covers(data["channel"]), (client, event)
                unstored[data["channel"]] = data["n"]
            elif event.type == "ping":
                assert event.id is None or sequence(event.id) >= before, (client, event, before)
                before = sequence(event.id) if event.id else before
            elif event.type != "reset":
                assert event.id is not None, (client, event)
                assert event.id in by_id, (client, event)
                published = by_id[event.id]
                assert published.is_on_the_wire_as(event), (client, event, published)
                assert client.covers(published.channel), (client, event)
                assert not client.types or published.type in (*client.types, END), (client, event)
                assert published.number > before, (client, event, before)
                before = published.number


class _Run:
    """What a client was due of one channel.

    Args:
        events: all of the channel, in their order.
    """

    def __init__(self, account: Account, client: Client, events: Sequence[Published]) -> None:
        self._account, self._client, self._all = account, client, events
        self._channel = events[0].channel
        self._kind = self._channel.split(".")[1]
        self._due = [event for event in events if not client.types or event.type in (*client.types, END)]
        self._numbers = [event.number for event in self._due]
        self._place = {event.id: place for place, event in enumerate(self._due)}

    def check(self) -> None:
        """Fail where it was sent something else."""
        low = high = 0  # the next event is one of those at these places
        came: list[int] = []
        for stream in self._client.streams:
            if not stream.events or stream.events[0][1].type != "connected":
                continue
            at, connected = stream.events[0]
            assert connected.id is not None
            if stream.position is not None:
                came_back = self._after(sequence(stream.position))
                if stream is not self._client.streams[0] and not self._is_told(stream):
                    self._expect(
                        came_back <= high, "a position has moved over what was not sent", stream, high
                    )
                low = high = came_back
            elif self._client.beginning.items() - {("from", "latest")}:
                low, high = self._begin(stream.asked, at)
                after = self._after(sequence(connected.id))
                self._expect(
                    after <= high, "connected is at a position behind what was promised", stream, high
                )
                low = max(low, after)
            else:
                low, high = (
                    self._after(self._head_before(stream.asked, LAG)),
                    self._after(self._head_after(at)),
                )
                after = self._after(sequence(connected.id))
                self._expect(low <= after <= high, "connected is not at the head", stream, (low, high))
                low = high = after
            seen = sequence(connected.id)
            at_once = True
            for at, event in stream.events[1:]:
                if event.type == "reset":
                    named = event.json()["channel"]
                    if ChannelPattern(named).matches(self._channel):
                        gone = any(
                            one.number > seen and not self._is_surely_kept(one, at) for one in self._all
                        )
                        self._expect(
                            gone or named != self._channel, "a reset, and all is kept", stream, event
                        )
                        low = self._after(self._head_before(stream.asked, LAG)) if at_once else low
                        high = self._after(self._head_after(at))
                    continue
                at_once = False
                seen = sequence(event.id) if event.id is not None else seen
                if event.type == "ping":
                    if event.id is not None and low == high and self._kind != "table":
                        self._expect(
                            self._after(sequence(event.id)) <= high,
                            "a ping over what was not sent",
                            stream,
                            event,
                        )
                elif event.id in self._place:
                    place = self._place[event.id]
                    self._expect(not came or place > came[-1], "twice, or out of order", stream, event)
                    if self._kind == "table":
                        self._expect(place >= low, "from before the beginning", stream, event)
                    else:
                        self._expect(low <= place <= high, "not the next event", stream, (event, low, high))
                    came.append(place)
                    low = high = place + 1
                    if self._kind == "table":
                        high = len(self._due)
            if self._kind == "table":
                high = len(self._due)
        self._expect(high == len(self._due), "not all has come", self._client.streams[-1], high)
        if self._kind == "table":
            self._check_table(came)

    def _check_table(self, came: Sequence[int]) -> None:
        """Check that of each key the newest has come, if one was due at all."""
        if not came:
            return
        newest = {event.key: place for place, event in enumerate(self._due)}
        begin = came[0]
        for key, place in newest.items():
            if place >= begin:
                self._expect(place in came, f"not the newest of {key}", self._client.streams[-1], place)

    def _begin(self, asked: float, connected: float) -> tuple[int, int]:
        """Return the first and the last place at which a beginning may begin."""
        low = high = 0
        query = self._client.beginning
        if "last" in query and self._kind != "table":
            heads = (self._head_before(asked), self._head_after(connected))
            low, high = (max(self._after(head) - int(query["last"]), 0) for head in heads)
        elif "last" in query:
            high = len(self._due)
        elif "since" in query:
            ago = -float(query["since"])
            low = sum(event.ended < asked - ago - ROUNDING for event in self._due)
            high = sum(event.begun <= connected - ago + ROUNDING for event in self._due)
        gone = 0
        for place, event in enumerate(self._due):
            if not self._is_surely_kept(event, connected):
                high = max(high, place + 1)
            if self._is_surely_gone(event, asked):
                gone = place + 1
        low = max(low, gone)
        return low, max(high, low)

    def _is_surely_kept(self, event: Published, at: float) -> bool:
        """Return whether an event is kept at a time, whatever happened first of what happened at once."""
        later = sum(other.number > event.number and other.begun <= at for other in self._all)
        if self._kind == "size":
            return later < KEPT_EVENTS
        if self._kind == "last":
            return later < 1
        return self._kind != "age" or event.begun - ROUNDING > at - KEPT_SECONDS

    def _is_surely_gone(self, event: Published, at: float) -> bool:
        later = sum(other.number > event.number and other.ended < at for other in self._all)
        if self._kind == "size":
            return later >= KEPT_EVENTS
        if self._kind == "last":
            return later >= 1
        return self._kind == "age" and event.ended + ROUNDING < at - KEPT_SECONDS

    def _is_told(self, stream: Stream) -> bool:
        return any(event.type == "reset" for _, event in stream.events)

    def _after(self, number: int) -> int:
        """Return the place of the first event that is later than a number."""
        return bisect_right(self._numbers, number)

    def _head_before(self, at: float, lag: float = 0.0) -> int:
        """Return the least that the head may have been then, of a process that lags behind by some seconds."""
        return max((one.number for one in self._account.published if one.ended < at - lag), default=0)

    def _head_after(self, at: float) -> int:
        """Return the most that the head may have been then."""
        return max((one.number for one in self._account.published if one.begun <= at), default=0)

    def _expect(self, condition: object, what: str, stream: Stream, more: object) -> None:
        assert condition, (
            f"{what} on {self._channel}: {more}\n{self._client}\n"
            + "\n".join(f"{event}" for event in self._due)
            + "\n\n"
            + f"\n\n{self._client.story()}"
            + f"\n\nin the stream asked for at {stream.asked}"
        )
