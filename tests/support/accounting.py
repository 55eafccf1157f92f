"""Publishers and clients of a server that is killed again and again, and an account of all that it said to them.

Everything is compared with what is stored in the end: what was acknowledged, what was refused, and what each client
was sent. Clients resume by id, wherever the kernel takes their connections.
"""

from __future__ import annotations

import itertools
import json
import random
import socket
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.room import sequence
from tests.support.server_process import ServerProcess
from tests.support.sse_reader import EventStreamReader, ReceivedEvent
from tests.support.waiting import until

CHANNELS = ("dashboard", "alerts", "training", "backtest", "user.ledger.1", "user.ledger.2")

ANSWER_TIMEOUT = 45.0
"""Within how many seconds each request is answered or cut off, and a stream sends something."""

COMES_BACK = 0.05
"""After how many seconds a client comes back, and a publisher tries again."""


class Stored(NamedTuple):
    """An event as the log has it."""

    channel: str
    data: Any


@dataclass(slots=True)
class Publish:
    """One request to publish, and what became of it.

    Attributes:
        name: stands in the data of its events.
        channels: where each of its events goes.
        begun, ended: when it was first sent, and when it was acknowledged.
        ids: of its events, once it was acknowledged.
        earlier: what else it was acknowledged with, before events were lost.
        uncertain: whether it may have been stored without a word: a connection was cut off before an answer came.
    """

    name: str
    channels: Sequence[str]
    begun: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    ids: list[str] = field(default_factory=list)
    earlier: list[list[str]] = field(default_factory=list)
    uncertain: bool = False

    def data(self) -> list[dict[str, object]]:
        """Return the data of each of its events."""
        return [{"of": self.name, "part": part} for part in range(len(self.channels))]


class Thread:
    """Runs in a thread of its own until it is stopped; what fails in it is raised then."""

    def __init__(self, name: str) -> None:
        self.stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def work(self) -> None:
        """Do what the thread is for, once; it is called again and again."""
        raise NotImplementedError

    def _run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.work()
        except BaseException as error:
            self._failure = error

    def check(self) -> None:
        """Raise what has failed, if anything has."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Have it end, and wait for that."""
        self.stopping.set()
        if self._thread.ident is not None:
            self._thread.join()


class Publisher(Thread):
    """Publishes one request after another.

    Args:
        servers: where to, to one of them over each connection.
        number: of the publisher.
        seed: of what it leaves to chance.
        keyed: whether each request has an idempotency key, and is repeated until it is acknowledged; else what
            becomes of it may stay unknown.
        kept: whether it keeps its connection; else it makes one for each request.
        batch: how many events a request has at most.
        pause: seconds between two.
        doubtful: whether what is answered 503 may have been stored.
        losses: whether what is acknowledged may be lost.
    """

    def __init__(
        self,
        servers: Sequence[ServerProcess],
        number: int,
        seed: str,
        *,
        keyed: bool,
        kept: bool,
        batch: int,
        pause: float = 0.06,
        doubtful: bool = False,
        losses: bool = False,
    ) -> None:
        super().__init__(f"publisher-{number}")
        self.sent: list[Publish] = []
        self.answers: dict[int, int] = {}
        """How often each status was answered."""
        self.longest = 0.0
        """The longest time until an answer or the end of the connection, in seconds."""
        self._number = number
        self._servers = servers
        self._headers = {"Authorization": f"Bearer {servers[0].access_token(ttl=6000)}"}
        self._chance = random.Random(seed)
        self._keyed, self._kept, self._batch, self._pause = keyed, kept, batch, pause
        self._doubtful, self._losses = doubtful, losses
        self._connection: HTTPConnection | None = None
        self._gives_up = False

    def work(self) -> None:
        """Publish one request."""
        channels = self._chance.choices(CHANNELS, k=self._chance.randint(1, self._batch))
        one = Publish(f"{self._number}.{len(self.sent) + 1}", channels)
        self.sent.append(one)
        self.publish(one)
        if self._keyed and self._chance.random() < 0.1:  # it may come to another worker
            self._leave()
            self.publish(one)
        self.stopping.wait(self._pause * 2 * self._chance.random())

    def publish(self, one: Publish) -> None:
        """Send a request, if it has a key until it is acknowledged."""
        while True:
            status, answer = self._answer(one)
            if status == 201:
                ids = answer["ids"] if "ids" in answer else [answer["id"]]
                if one.ids not in ([], ids):
                    assert self._losses, f"{one} was repeated and acknowledged with {ids}"
                    one.earlier.append(one.ids)
                one.ids, one.ended = ids, one.ended or time.monotonic()
                return
            assert status in (0, 503), (status, answer)
            if status and self._chance.random() < 0.2:  # another server may take it
                self._leave()
            one.uncertain = one.uncertain or not status or self._doubtful
            if not self._keyed or self._gives_up:
                return
            time.sleep(COMES_BACK)

    def _answer(self, one: Publish) -> tuple[int, Any]:
        """Return the status and the content of an answer; the status is 0 where none came."""
        events = [
            {"channel": channel, "event": "e", "data": data}
            for channel, data in zip(one.channels, one.data(), strict=True)
        ]
        path = "/api/v1/sse"
        content: Any = {"events": events}
        if len(events) == 1:
            path += f"/{events[0].pop('channel')}"
            (content,) = events
        headers = self._headers | ({"Idempotency-Key": one.name} if self._keyed else {})
        if (connection := self._connected()) is None:
            return 0, None
        begun = time.monotonic()
        try:
            connection.request("POST", path, json.dumps(content), headers)
            answer = connection.getresponse()
            read = answer.read()
        except TimeoutError as error:
            raise AssertionError(f"{one} was not answered within {ANSWER_TIMEOUT} s") from error
        except (OSError, HTTPException):
            self._leave()
            return 0, None
        finally:
            self.longest = max(self.longest, time.monotonic() - begun)
        self.answers[answer.status] = self.answers.get(answer.status, 0) + 1
        if not self._kept:
            self._leave()
        return answer.status, json.loads(read)

    def _connected(self) -> HTTPConnection | None:
        while self._connection is None and not self._gives_up:
            port = self._chance.choice(self._servers).port
            connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT)
            try:
                connection.connect()
            except OSError:  # nothing was sent
                time.sleep(COMES_BACK)
            else:
                self._connection = connection
        return self._connection

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def stop(self) -> None:
        """Have it end, once its last request has an answer."""
        super().stop()
        self._leave()

    def give_up(self) -> None:
        """Have it end, also where the server does not serve any more."""
        self._gives_up = True
        self.stop()


class Listener(Thread):
    """A client that is sent away, cut off, or leaves, and comes back with the id of its last event.

    Args:
        servers: where it listens, to one of them with each stream.
        number: of the client.
        seed: of what it leaves to chance.
        channels: what it listens to.
        stays: for how many seconds it stays on the average, where nothing ends its stream.
        resets: whether it may be told that something is lost to it.
    """

    def __init__(
        self,
        servers: Sequence[ServerProcess],
        number: int,
        seed: str,
        channels: Sequence[str],
        stays: float,
        *,
        resets: bool = False,
    ) -> None:
        super().__init__(f"listener-{number}")
        self.channels = channels
        self.begins_after: str | None = None
        """The id of its first ``connected``."""
        self.position = ""
        self.seen: list[tuple[str, Any]] = []
        """Ids and data of all events, of all its streams."""
        self.streams = 0
        self.resets: list[int] = []
        """How many events it had seen each time that it was told of a loss."""
        self._may_be_reset = resets
        self._servers = servers
        self._chance = random.Random(seed)
        self._stays = stays
        self._by_header = number % 2 == 0
        self._token = servers[0].stream_token(*channels, ttl=6000)
        self._socket: socket.socket | None = None

    def work(self) -> None:
        """Have one stream, to its end."""
        server = self._chance.choice(self._servers)
        try:
            self._socket = socket.create_connection(("127.0.0.1", server.port), ANSWER_TIMEOUT)
        except OSError:
            self.stopping.wait(COMES_BACK)
            return
        try:
            self._listen(self._socket, server)
        except TimeoutError as error:
            raise AssertionError(f"nothing came within {ANSWER_TIMEOUT} s") from error
        except (OSError, HTTPException):  # the server, or the test, has ended it
            pass
        finally:
            self._socket.close()
        self.stopping.wait(COMES_BACK * self._chance.random())

    def _listen(self, sock: socket.socket, server: ServerProcess) -> None:
        query = {"last_event_id": self.position} if self.position and not self._by_header else {}
        url = server.stream_url(",".join(self.channels), self._token, **query)
        header = f"Last-Event-ID: {self.position}\r\n" if self.position and self._by_header else ""
        path = url.removeprefix(server.url)
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
        response = HTTPResponse(sock)
        response.begin()
        assert response.status == 200, (response.status, response.read())
        leaves_at = time.monotonic() + self._chance.expovariate(1 / self._stays)
        reader = EventStreamReader()
        connected = closing = False
        with response:
            while not self.stopping.is_set() and time.monotonic() < leaves_at:
                piece = response.read1(65_536)
                if not piece:
                    return
                for event in reader.feed(piece):
                    assert not closing, f"{event} after closing"
                    closing = event.type == "closing"
                    if event.type == "reset":
                        assert self.resets, event
                        assert event.json()["channel"] in self.channels, event
                    elif event.type not in ("closing", "ping"):
                        self._take(event, connected)
                        connected = True

    def _take(self, event: ReceivedEvent, connected: bool) -> None:
        data = event.json()
        assert event.id is not None, event  # a reset has none: all that is published is kept
        if not connected:
            assert event.type == "connected", event
            self.streams += 1
            if self.begins_after is None:
                self.begins_after = event.id
            elif self._may_be_reset and not data["recovered"]:
                self.resets.append(len(self.seen))
            else:
                assert (event.id, data["recovered"]) == (self.position, True), (event, self.position)
        else:
            assert event.type == "e", event
            if self.resets[-1:] != [len(self.seen)]:  # else its position is still the one that was lost
                assert _epoch(event.id) == _epoch(self.position), (event, self.position)
                assert sequence(event.id) > sequence(self.position), (event, self.position)
            self.seen.append((event.id, data))
        self.position = event.id

    def stop(self) -> None:
        """End the stream."""
        self.stopping.set()
        with suppress(OSError, AttributeError):
            self._socket.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
        super().stop()


class Books:
    """Publishers and clients of a server or of several, and the account of them.

    Args:
        servers: they run, and share one log and their keys.
        seed: of what they leave to chance.
        clients: how many.
        doubtful: whether what is answered 503 may have been stored.
        losses: whether what was acknowledged may be lost, and is told to be.
    """

    def __init__(
        self,
        *servers: ServerProcess,
        seed: int,
        clients: int = 10,
        doubtful: bool = False,
        losses: bool = False,
    ) -> None:
        self.publishers = [
            Publisher(
                servers,
                number,
                f"{seed} publisher {number}",
                keyed=keyed,
                kept=kept,
                batch=batch,
                doubtful=doubtful,
                losses=losses,
            )
            for number, (keyed, kept, batch) in enumerate(
                (keyed, kept, batch) for keyed in (True, False) for kept in (True, False) for batch in (1, 8)
            )
        ]
        self._numbers = itertools.count(1)
        self.lost = 0
        """How many acknowledged events were lost, once that is known."""
        chance = random.Random(f"{seed} clients")
        self.listeners = []
        for number in range(clients):
            channels = chance.sample(CHANNELS, chance.randint(1, len(CHANNELS)))
            stays = chance.choice((0.5, 3.0, 600.0))
            listener = Listener(servers, number, f"{seed} client {number}", channels, stays, resets=losses)
            self.listeners.append(listener)

    def open(self) -> None:
        """Have all begin, the clients first."""
        for listener in self.listeners:
            listener.start()
        until(lambda: all(listener.begins_after for listener in self.listeners), "all clients are connected")
        for publisher in self.publishers:
            publisher.start()

    def enter(self, *channels: str) -> Publish:
        """Enter a request that the test itself sends, with its name as idempotency key."""
        one = Publish(f"test.{next(self._numbers)}", channels, uncertain=True)
        self.publishers[0].sent.append(one)
        return one

    def acknowledged_with(self, one: Publish, ids: list[str]) -> None:
        """Note with what ids such a request was acknowledged."""
        assert one.ids in ([], ids), (one, ids)
        one.ids, one.ended = ids, one.ended or time.monotonic()

    @property
    def acknowledged(self) -> int:
        """How many requests were acknowledged."""
        return sum(bool(one.ids) for publisher in self.publishers for one in publisher.sent)

    @property
    def refused(self) -> int:
        """How often 503 was answered."""
        return sum(publisher.answers.get(503, 0) for publisher in self.publishers)

    def advance(self, count: int = 10) -> None:
        """Wait until so many more requests are acknowledged."""
        goal = self.acknowledged + count
        until(lambda: self.work_on() and self.acknowledged >= goal, "more is acknowledged")

    def work_on(self) -> bool:
        """Return True, or raise what has failed in a publisher or a client."""
        for thread in (*self.publishers, *self.listeners):
            thread.check()
        return True

    def close(self) -> None:
        """End all."""
        for publisher in self.publishers:
            publisher.give_up()
        for listener in self.listeners:
            listener.stop()

    def settle(self) -> None:
        """Publish no more, wait until each client has been sent all, and end all; the server serves."""
        for publisher in self.publishers:
            publisher.stopping.set()
        for publisher in self.publishers:
            publisher.stop()
        last = self._to_all()
        while any(_epoch(listener.position) != _epoch(last.ids[0]) for listener in self.listeners):
            self.work_on()  # the position of a client that was told of a loss is the lost one until its next event
            time.sleep(COMES_BACK)
            last = self._to_all()
        position = dict(zip(CHANNELS, last.ids, strict=True))
        for listener in self.listeners:
            end = max(sequence(position[channel]) for channel in listener.channels)
            until(
                lambda listener=listener, end=end: (  # type: ignore[misc]
                    self.work_on() and sequence(listener.position) >= end
                ),
                f"{listener.channels} up to {end} has come, after {listener.position}",
            )
        self.close()
        self.work_on()

    def _to_all(self) -> Publish:
        one = self.enter(*CHANNELS)
        self.publishers[0].publish(one)
        return one

    def balance(self, stored: Mapping[str, Stored]) -> None:
        """Compare all that was said with all that is stored, by its id; call it after `settle`."""
        numbers = [sequence(id) for id in stored]
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), "the log has a hole, or a number twice"
        assert len({id.rpartition("-")[0] for id in stored}) == 1
        self._balance_publishers(stored)
        for listener in self.listeners:
            assert listener.begins_after is not None
            begin = sequence(listener.begins_after)
            due = {
                id: event.data
                for id, event in stored.items()
                if event.channel in listener.channels and sequence(id) > begin
            }
            ids = [id for id, _ in listener.seen]
            assert not (invented := [id for id in ids if id not in due]), ("sent, not stored", invented[:9])
            assert not (missed := sorted(due.keys() - set(ids), key=sequence)), ("not sent", missed[:9])
            assert ids == sorted(due, key=sequence)
            assert all(due[id] == data for id, data in listener.seen)

    def balance_with_losses(self, stored: Mapping[str, Stored]) -> int:
        """Compare all that was said with what is stored after events were lost, and return how many were acknowledged.

        No id stands for two events; what was lost is all that is later than what was not; and what each client was
        sent is whole between the times that it was told of a loss.
        """
        requests = {one.name: one for publisher in self.publishers for one in publisher.sent}
        (epoch,) = {_epoch(id) for id in stored}
        said: dict[str, tuple[str, int]] = {}

        def note(id: str, of: str, part: int) -> None:
            assert said.setdefault(id, (of, part)) == (of, part), (id, said[id], (of, part))

        for one in requests.values():
            for ids in (one.ids, *one.earlier):
                for part, id in enumerate(ids):
                    note(id, one.name, part)
        acknowledged = {*said}
        for id, event in stored.items():
            note(id, event.data["of"], event.data["part"])
        for listener in self.listeners:
            for id, data in listener.seen:
                note(id, data["of"], data["part"])
        lost = {id for id in said if _epoch(id) != epoch and said.get(f"{epoch}-{sequence(id)}") != said[id]}
        kept = said.keys() - lost
        earlier = [sequence(id) for id in kept if _epoch(id) != epoch]
        assert max(earlier, default=0) < min(map(sequence, lost), default=1 << 63)
        for old in {_epoch(id) for id in said} - {epoch}:
            for seq in range(1, max(earlier, default=0) + 1):
                note(f"{old}-{seq}", *said[f"{epoch}-{seq}"])
        for id in acknowledged - lost:
            assert f"{epoch}-{sequence(id)}" in stored, id
        for listener in self.listeners:
            assert listener.begins_after is not None
            for begin, end in pairwise((0, *listener.resets, len(listener.seen))):
                ids = [id for id, _ in listener.seen[begin:end]]
                if not ids:
                    continue
                after = sequence(listener.begins_after) + 1 if begin == 0 else sequence(ids[0])
                until = len(stored) if _epoch(ids[0]) == epoch else sequence(ids[-1])
                due = [
                    id
                    for id, (of, part) in said.items()
                    if _epoch(id) == _epoch(ids[0])
                    and after <= sequence(id) <= until
                    and requests[of].channels[part] in listener.channels
                ]
                assert ids == sorted(due, key=sequence), (listener.channels, begin, end)
        return len(acknowledged & lost)

    def _balance_publishers(self, stored: Mapping[str, Stored]) -> None:
        of_request: dict[str, list[str]] = {}
        for id in sorted(stored, key=sequence):
            of_request.setdefault(stored[id].data["of"], []).append(id)
        sent = [one for publisher in self.publishers for one in publisher.sent]
        assert not of_request.keys() - {one.name for one in sent}
        acknowledged: set[str] = set()
        for one in sent:
            ids = of_request.get(one.name, [])
            if one.ids:
                assert one.ids == ids, (one, ids)
                assert not acknowledged & set(ids), one
                acknowledged.update(ids)
            elif not one.uncertain:
                assert ids == [], f"{one} was refused, and is stored as {ids}"
            if ids:
                assert len(ids) == len(one.channels), f"{one} is stored in part, or twice: {ids}"
                assert sequence(ids[-1]) - sequence(ids[0]) == len(ids) - 1, (one, ids)
                for id, channel, data in zip(ids, one.channels, one.data(), strict=True):
                    assert stored[id].channel == channel, (one, stored[id])
                    assert data.items() <= stored[id].data.items(), (one, stored[id])
        self._balance_order(sent)

    @staticmethod
    def _balance_order(sent: Sequence[Publish]) -> None:
        """Check that what was sent after another was acknowledged comes after it in the log."""
        known = [one for one in sent if one.ids]
        ended = sorted(known, key=lambda one: one.ended)
        before = 0
        highest = 0
        for one in sorted(known, key=lambda one: one.begun):
            while before < len(ended) and ended[before].ended < one.begun:
                highest = max(highest, sequence(ended[before].ids[-1]))
                before += 1
            assert sequence(one.ids[0]) > highest, (one, highest)

    def story(self) -> str:
        """Return in a line what has happened."""
        sent = [one for publisher in self.publishers for one in publisher.sent]
        answers: dict[int, int] = {}
        for publisher in self.publishers:
            for status, count in publisher.answers.items():
                answers[status] = answers.get(status, 0) + count
        return (
            f"{len(sent)} requests, {sum(len(one.ids) for one in sent)} events acknowledged, "
            f"{sum(one.uncertain for one in sent)} requests cut off, answers {answers}, "
            f"{sum(listener.streams for listener in self.listeners)} streams of {len(self.listeners)} clients, "
            f"{sum(len(listener.seen) for listener in self.listeners)} events received, "
            f"longest answer {max(publisher.longest for publisher in self.publishers):.1f} s"
        )


def _epoch(id: str) -> str:
    return id.rpartition("-")[0]


def history_of(server: ServerProcess) -> dict[str, Stored]:
    """Return all events by their ids, as the server's history has them."""
    found: dict[str, Stored] = {}
    with server.publisher() as http:
        # A node whose database was away may learn only now that it is back.
        until(lambda: http.get("/readyz").status_code == 200, "the log can be read")
        for channel in CHANNELS:
            epoch = http.get("/api/v1/sse/status").json()["channels"]["dashboard"]["last_event_id"]
            after = f"{epoch.rpartition('-')[0]}-0"
            while True:
                page = http.get(
                    f"/api/v1/sse/{channel}/history", params={"after": after, "limit": 1000}
                ).json()
                assert page["complete"]
                if not page["events"]:
                    break
                for event in page["events"]:
                    assert event["id"] not in found
                    found[event["id"]] = Stored(channel, event["data"])
                after = page["events"][-1]["id"]
    return found


def listing_of(state_dir: Path) -> dict[str, Stored]:
    """Return all events by their ids, as they are in the file; no process has it open."""
    with closing(sqlite3.connect(state_dir / "events.db")) as database:
        ((epoch,),) = database.execute("SELECT epoch FROM log").fetchall()
        rows = database.execute("SELECT seq, name, data FROM events JOIN channels ON channels.id = channel")
        return {f"{epoch}-{seq}": Stored(channel, json.loads(data)) for seq, channel, data in rows}
