"""What the server for tests knows and answers: it runs in one event loop, in memory."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, get_args

from sse_app.client.fake_http import Answer, Request, SmallServer
from sse_app.core.channels import ChannelPatterns, parse_channel, parse_channels
from sse_app.core.errors import InvalidChannel, InvalidInput
from sse_app.core.events import FINAL, TEXT, EventId, NewEvent, new_event, timestamp
from sse_app.core.sse import encode_closing, encode_event, encode_json, encode_text_event, encode_without_id

EPOCH = "fake"
MOST_CHANNELS = 1000

STREAM = "/api/v1/sse"
AUTH = "/api/v1/auth/"
TOKENS = ("access_token", "stream_token", "refresh_token")

Where = Literal["stream", "publish", "renewal", "presence", "login", "refresh", "logout", "stream-token"]
"""What a request asks for."""

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"


class Published(NamedTuple):
    """An event that was published over HTTP.

    Attributes:
        id: its id; "" where the channel is not stored.
        channel: where to.
        type: the event type.
        data: as it was sent.
        final: whether it ends the channel.
        retry: the reconnection time for clients that was sent, in milliseconds.
        key: the idempotency key; "" where there was none.
        token: the access token.
    """

    id: str
    channel: str
    type: str
    data: Any
    final: bool
    retry: int | None
    key: str
    token: str


class OpenStream(NamedTuple):
    """A stream that is open.

    Attributes:
        channels: what it carries.
        client_id: its label.
        token: the stream token; "" where there is none.
        last_event_id: the position that it came with; None where it had none.
    """

    channels: tuple[str, ...]
    client_id: str
    token: str
    last_event_id: str | None


@dataclass(eq=False, slots=True)
class _Stream:
    info: OpenStream
    patterns: ChannelPatterns
    types: frozenset[str] | None
    writer: asyncio.StreamWriter
    since: str = field(default_factory=lambda: timestamp(time.time()))
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def carries(self, event: NewEvent) -> bool:
        return self.patterns.matches(event.channel) and (self.types is None or event.type in self.types)


class _Stored(NamedTuple):
    seq: int
    at: float
    event: NewEvent


class Planned(NamedTuple):
    """What happens to the next request of a kind.

    Attributes:
        where: which kind.
        instead: what it is answered without being done; None: it is done, and its answer is lost.
    """

    where: Where
    instead: Answer | None


class Refused(Exception):
    """A request is refused; the arguments are the status, the code and the message."""

    @property
    def answer(self) -> Answer:
        """The answer."""
        return refusal(*self.args)


class FakeState:
    """A server's events, streams and tokens.

    Args:
        users: passwords by name; None takes any.
        unstored: patterns of channels whose events are not stored.
        lifetime: seconds that tokens are said to be valid.
        retry: milliseconds after which clients are told to come back.
    """

    def __init__(
        self, users: Mapping[str, str] | None, unstored: ChannelPatterns, lifetime: float, retry: int
    ) -> None:
        self.http = SmallServer(self._handle)
        self.published: list[Published] = []
        self.asked: Counter[Where] = Counter()
        self.planned: list[Planned] = []
        self.streams: list[_Stream] = []
        self._users = users
        self._unstored = unstored
        self._lifetime = lifetime
        self._retry = retry
        self._log: list[_Stored] = []
        self._final: set[str] = set()
        self._answered: dict[str, tuple[bytes, Answer]] = {}  # by idempotency key
        self._numbers = iter(range(1, 2**62))
        self._owners: dict[str, str] = {}  # of the tokens that were issued
        self._seen: set[str] = set()
        self._expired: set[str] = set()
        self._handlers: dict[Where, Callable[[Request], Answer]] = {
            "publish": self._publish,
            "renewal": self._renew,
            "presence": self._presence,
            "login": self._login,
            "refresh": self._refresh,
            "logout": self._logout,
            "stream-token": self._stream_token,
        }

    async def _handle(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Answer | None:
        where = _where(request)
        if where is None:
            return refusal(404, "not_found", f"a FakeServer has no {request.method} {request.path}")
        self.asked[where] += 1
        planned = next((each for each in self.planned if each.where == where), None)
        if planned is not None:
            self.planned.remove(planned)
            if planned.instead is not None:
                return planned.instead
        try:
            if where == "stream":
                return await self._serve(request, reader, writer)
            answer = self._handlers[where](request)
        except Refused as refused:
            answer = refused.answer
        except InvalidChannel as error:
            answer = refusal(400, "invalid_channel", str(error))
        except InvalidInput as error:
            answer = refusal(422, "invalid_input", str(error))
        return answer if planned is None else None

    async def _serve(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Answer | None:
        """Open a stream, and keep it open until it is ended or the client goes."""
        if request.token:
            self._check(request.token, "stream")
        names = parse_channels(request.path.rpartition("/")[2], MOST_CHANNELS)
        query = request.query
        asked = request.headers.get("last-event-id", query.get("last_event_id"))
        client_id = query.get("client_id", f"client-{next(self._numbers)}")
        info = OpenStream(names, client_id, request.token, asked)
        types = frozenset(query["types"].split(",")) if "types" in query else None
        stream = _Stream(info, ChannelPatterns(names), types, writer)
        position, missed, lost = self._beginning(stream, query)
        if self._is_over(stream) and not missed and not lost:
            return Answer(204)
        connected = {
            "client_id": client_id,
            "channel": names[0],
            "channels": names,
            "message": f"connected to {', '.join(names)}",
            "recovered": asked is not None and not lost,
            "retry": self._retry,
            "expires_in": int(self._lifetime) if request.token else None,
            "timestamp": timestamp(time.time()),
        }
        writer.write(_HEAD + encode_json("connected", connected, id=position, retry=self._retry))
        for channel in names if lost else ():
            writer.write(encode_json("reset", {"channel": channel, "reason": lost}))
        for each in missed:
            writer.write(_frame(each.event, f"{EPOCH}-{each.seq}"))
        self.streams.append(stream)
        self._end_what_is_over()
        waits = [asyncio.create_task(reader.read()), asyncio.create_task(stream.ended.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            if stream in self.streams:
                self.streams.remove(stream)
        return None

    def _beginning(self, stream: _Stream, query: dict[str, str]) -> tuple[str, list[_Stored], str]:
        """Return the position before a stream's first event, what it is sent first, and why that was lost, else ""."""
        head = self._log[-1].seq if self._log else 0
        kept = [each for each in self._log if stream.patterns.matches(each.event.channel)]
        if (asked := stream.info.last_event_id) is not None:
            place = EventId.parse(asked)
            if place is None or place.epoch != EPOCH:
                return asked if place else f"{EPOCH}-{head}", [], "log_replaced"
            if place.seq > head:
                return asked, [], "position_ahead"
            after, first = place.seq, [each for each in kept if each.seq > place.seq]
        else:
            if "last" in query:  # those of the types asked for count
                kept = [each for each in kept if stream.carries(each.event)]
            try:
                first = [each for each in kept if _is_asked_for(each, kept, query)]
            except ValueError as error:
                raise Refused(400, "invalid_beginning", str(error)) from None
            after = first[0].seq - 1 if first else head
        return f"{EPOCH}-{after}", [each for each in first if stream.carries(each.event)], ""

    def store(self, event: NewEvent) -> str:
        """Keep an event, send it to the streams on its channel, and return its id."""
        id = ""
        if not self._unstored.matches(event.channel):
            seq = self._log[-1].seq + 1 if self._log else 1
            self._log.append(_Stored(seq, time.time(), event))
            id = f"{EPOCH}-{seq}"
            (self._final.add if event.flags & FINAL else self._final.discard)(event.channel)
        frame = _frame(event, id)
        for stream in self.streams:
            if stream.carries(event):
                stream.writer.write(frame)
        self._end_what_is_over()
        return id

    def _is_over(self, stream: _Stream) -> bool:
        return self._final.issuperset(stream.info.channels)

    def _end_what_is_over(self) -> None:
        self.end(encode_closing("ended", None), self._is_over)

    def end(self, farewell: bytes, concerns: Callable[[_Stream], bool] = lambda stream: True) -> None:
        """End streams with a last event."""
        for stream in [each for each in self.streams if concerns(each)]:
            stream.writer.write(farewell)
            self._forget(stream)

    def drop(self) -> None:
        """Cut the connections of all streams."""
        for stream in [*self.streams]:
            stream.writer.transport.abort()
            self._forget(stream)

    def reset(self, channel: str, reason: str) -> None:
        """Tell the streams on a channel that there is a gap in it."""
        for stream in self.streams:
            if channel in stream.info.channels or stream.patterns.matches(channel):
                stream.writer.write(encode_json("reset", {"channel": channel, "reason": reason}))

    def _forget(self, stream: _Stream) -> None:
        self.streams.remove(stream)
        stream.ended.set()

    def expire(self) -> None:
        """Let all tokens that were issued or used expire, and end the streams with one."""
        self._expired |= self._seen
        self.end(encode_closing("token_expired", None), lambda stream: bool(stream.info.token))

    def _check(self, token: str, kind: str) -> None:
        """Take note of a token.

        Raises:
            Refused: there is none, it has expired, or it was issued for something else.
        """
        if not token:
            raise Refused(401, "invalid_token", "there is no token")
        self._seen.add(token)
        if token in self._expired:
            raise Refused(401, "invalid_token", "the token has expired")
        if token in self._owners and not token.startswith(kind):
            raise Refused(401, "invalid_token", f"this takes the {kind}_token")

    def _issue(self, user: str) -> dict[str, Any]:
        issued = {name: f"{name.partition('_')[0]}-{next(self._numbers)}" for name in TOKENS}
        self._owners |= dict.fromkeys(issued.values(), user)
        self._seen |= {issued["access_token"], issued["stream_token"]}
        return {**issued, "token_type": "Bearer", "expires_in": int(self._lifetime)}

    def _publish(self, request: Request) -> Answer:
        self._check(request.token, "access")
        key = request.headers.get("idempotency-key", "")
        content = request.path.encode() + b"\n" + request.body
        if key and (before := self._answered.get(key)) is not None:
            if before[0] != content:
                raise Refused(422, "idempotency_key_reused", "the key was used for another request")
            return before[1]
        bodies, single = self._bodies(request)
        events = [
            checked_event(str(body.get("channel")), body, f"events[{n}]." if not single else "")
            for n, body in enumerate(bodies)
        ]
        ids = []
        for event, body in zip(events, bodies, strict=True):
            ids.append(self.store(event))
            final, retry = body.get("final", False), body.get("retry")
            self.published.append(
                Published(ids[-1], event.channel, event.type, body["data"], final, retry, key, request.token)
            )
        if not single:
            answer = Answer(201 if any(ids) else 202, {"ids": [id or None for id in ids]})
        elif ids[0]:
            answer = Answer(201, {"id": ids[0], "channel": events[0].channel})
        else:
            answer = Answer(202, {"channel": events[0].channel})
        if key:
            self._answered[key] = content, answer
        return answer

    def _bodies(self, request: Request) -> tuple[list[dict[str, Any]], bool]:
        """Return the events that a request publishes, and whether it is one alone.

        Raises:
            Refused: there are none.
        """
        channel = request.path.removeprefix(STREAM).removeprefix("/")
        if channel and request.headers.get("content-type", "").startswith("text/"):
            retry = request.query.get("retry")
            final = request.query.get("final") == "true"
            text = {
                "event": request.query.get("event"),
                "data": request.body.decode(errors="replace"),
                "final": final,
            }
            return [{**text, "channel": channel, "retry": None if retry is None else int(retry)}], True
        body = request.json()
        if body is None:
            raise Refused(400, "invalid_json", "the body is no JSON object")
        single = request.path != STREAM
        bodies = [{**body, "channel": channel}] if single else body.get("events")
        if not isinstance(bodies, list) or not all(
            isinstance(each, dict) and "data" in each for each in bodies
        ):
            raise Refused(
                422,
                "invalid_input",
                "what is published is {event, data}, or {events: [{channel, event, data}]}",
            )
        return bodies, single

    def _login(self, request: Request) -> Answer:
        body = request.json() or {}
        user, password = str(body.get("username")), body.get("password")
        if self._users is not None and (user not in self._users or self._users[user] != password):
            raise Refused(401, "invalid_credentials", "the name or the password is wrong")
        return Answer(200, self._issue(user))

    def _refresh(self, request: Request) -> Answer:
        user = self._owners.pop(str((request.json() or {}).get("refresh_token")), None)
        if user is None:
            raise Refused(401, "invalid_token", "the refresh token is of no use")
        return Answer(200, self._issue(user))

    def _logout(self, request: Request) -> Answer:
        self._owners.pop(str((request.json() or {}).get("refresh_token")), None)
        return Answer(204)

    def _stream_token(self, request: Request) -> Answer:
        self._check(request.token, "access")
        issued = self._issue(self._owners.get(request.token, ""))
        return Answer(200, {"stream_token": issued["stream_token"], "expires_in": issued["expires_in"]})

    def _renew(self, request: Request) -> Answer:
        self._check(request.token, "stream")
        client_id = request.path.split("/")[-2]
        renewed = [each for each in self.streams if each.info.client_id == client_id]
        if not renewed:
            raise Refused(404, "unknown_connection", "there is no such stream")
        for stream in renewed:
            stream.info = stream.info._replace(token=request.token)
        return Answer(200, {"renewed": len(renewed), "expires_in": int(self._lifetime), "complete": True})

    def _presence(self, request: Request) -> Answer:
        self._check(request.token, "access")
        channel = request.path.split("/")[-2]
        there = [each for each in self.streams if channel in each.info.channels]
        users = Counter(self._owners[each.info.token] for each in there if each.info.token in self._owners)
        since = {self._owners.get(each.info.token): each.since for each in reversed(there)}
        listed = [{"sub": name, "streams": count, "since": since[name]} for name, count in users.items()]
        anonymous = len(there) - users.total()
        return Answer(200, {"count": len(users), "users": listed, "anonymous": anonymous, "complete": True})


def refusal(status: int, code: str, message: str, *headers: tuple[str, str]) -> Answer:
    """Return an answer that refuses a request."""
    return Answer(status, {"error": {"code": code, "message": message}}, headers)


def _where(request: Request) -> Where | None:
    """Return what a request asks for; None where it is nothing that there is."""
    parts = request.path.removeprefix(STREAM).strip("/").split("/")
    match request.method, parts:
        case "POST", _ if request.path.startswith(AUTH):
            name = request.path.removeprefix(AUTH)
            return next((each for each in get_args(Where)[4:] if each == name), None)
        case _ if not request.path.startswith(STREAM):
            return None
        case "POST", ["connections", _, "renew"]:
            return "renewal"
        case "GET", [_, "presence"]:
            return "presence"
        case "GET", [channels] if channels not in ("", "status"):
            return "stream"
        case "POST", [_]:
            return "publish"
    return None


def checked_event(channel: str, body: Mapping[str, Any], field: str = "") -> NewEvent:
    """Return an event as the server checks and completes it.

    Args:
        channel: where it goes.
        body: ``{"event", "data"[, "retry"][, "final"]}``.
        field: where it stands in a request, for the error's text.

    Raises:
        InvalidInput: the server would refuse it.
    """
    return new_event(
        parse_channel(channel),
        body.get("event"),
        body["data"],
        body.get("retry"),
        body.get("final", False),
        now=timestamp(time.time()),
        field=field,
    )


def _frame(event: NewEvent, id: str) -> bytes:
    """Return an event as it is sent; its id is empty where it is not stored."""
    is_text = bool(event.flags & TEXT)
    if not id:
        return encode_without_id(event.type.encode(), event.data, event.retry, is_text=is_text)
    encode = encode_text_event if is_text else encode_event
    return encode(id.encode(), event.type.encode(), event.data, event.retry)


def _is_asked_for(stored: _Stored, kept: list[_Stored], query: dict[str, str]) -> bool:
    """Return whether a stream without a position begins with an event.

    Raises:
        ValueError: the query cannot be read.
    """
    if "last" in query:
        newer = [
            each for each in kept if each.event.channel == stored.event.channel and each.seq > stored.seq
        ]
        return len(newer) < int(query["last"])
    if since := query.get("since"):
        if since.startswith("-"):
            return stored.at >= time.time() + float(since)
        return stored.at >= datetime.fromisoformat(since).timestamp()
    return query.get("from") == "earliest"
