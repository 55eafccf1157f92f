"""One connection of a stream: opens it, and yields what comes, without doubles, until it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from sse_app.client.errors import (
    ClientError,
    Forbidden,
    ProtocolError,
    StreamEnded,
    Unauthorized,
    Unavailable,
    kicked_or,
)
from sse_app.client.event_stream import EventStreamParser, Sent
from sse_app.client.http import CONNECT_TIMEOUT, failure, json_object, json_or_text, retry_after
from sse_app.client.items import Connected, Event, Moved, Reset
from sse_app.client.tokens import StreamTokens
from sse_app.client.watch import Dropped, Pace, Silence, WatchedStream
from sse_app.core.channels import ChannelPatterns
from sse_app.core.events import EventId

FINAL = frozenset({400, 401, 403, 404})
"""Statuses with which a stream is refused for good; it may get any other one later (docs/clients.md)."""

RETURN_AT_ONCE = 1.0
"""Seconds a connection must have been open for the next one to follow at once; else they could follow endlessly."""


@dataclass(slots=True)
class Position:
    """How far a stream has come.

    Attributes:
        id: the last event id, to resume after; None before the first connection.
        names: the channels that the stream names.
        seen: of each of these the last event seen, to know doubles by; under "" that of all others, which come by
            patterns, or do not say of which channel they are.
    """

    id: str | None = None
    names: frozenset[str] = frozenset()
    seen: dict[str, EventId] = field(default_factory=dict)

    def start(self, id: str | None) -> None:
        """Note the position that the stream begins at: the one asked for, or the one before its first event."""
        if id is None:
            return
        self.move(id)
        place = EventId.parse(id)
        if place is not None:
            for channel in (*self.names, ""):
                self.seen.setdefault(channel, place)

    def move(self, id: str) -> None:
        """Note the id to resume after; the empty one stands for none, and one that no header can carry is left out."""
        if id.isprintable() and id == id.strip():
            self.id = id or None

    def reset(self, channel: str) -> None:
        """Forget a channel's position: it continues from another one, further back where a log was restored."""
        self.seen.pop(channel, None)
        self.seen.pop("", None)

    def is_new(self, channel: str, place: EventId) -> bool:
        """Return whether an event has not been seen."""
        seen = self.seen.get(self._key(channel))
        return seen is None or seen.epoch != place.epoch or place.seq > seen.seq

    def advance(self, channel: str, place: EventId) -> None:
        """Note that an event has come."""
        self.seen[self._key(channel)] = place

    def _key(self, channel: str) -> str:
        return channel if channel in self.names else ""


@dataclass(frozen=True, slots=True)
class End:
    """How a connection ended.

    Attributes:
        reason: for people.
        wait: seconds that the server asks to stay away; None: it did not say.
        at_once: whether the next one is to follow without a delay.
    """

    reason: str
    wait: float | None = None
    at_once: bool = False


class Connection:
    """A stream's connection, once the server has answered 200.

    Args:
        response: the answer.
        position: how far the stream has come; it is kept up to date.
        pace: of the pings; it is kept up to date.
        tokens: where its tokens come from.
        channels: what the stream carries.
    """

    def __init__(
        self,
        response: httpx.Response,
        position: Position,
        pace: Pace,
        tokens: StreamTokens,
        channels: ChannelPatterns,
    ) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self.body = WatchedStream(response.stream, pace)
        response.stream = self.body
        self._response = response
        self._parser = EventStreamParser()
        self._position = position
        self._pace = pace
        self._tokens = tokens
        self._channels = channels
        alone = channels.texts[0] if len(channels.texts) == 1 else "*"
        self._only = "" if "*" in alone else alone  # the one channel, where there can be no other
        self._stood_since: float | None = None
        self.is_over = False
        """Whether all that the stream carries has come to its end."""
        self.end = End("the server closed the connection")
        self._announced_end: End | None = None
        self._refusal: ClientError | None = None

    @property
    def retry(self) -> float | None:
        """The reconnection time that the server has sent, in seconds; None where it has not."""
        return None if self._parser.retry is None else self._parser.retry / 1000

    def fail(self, refusal: ClientError) -> None:
        """End the connection, and have `items` raise why there is to be no other."""
        self._refusal = refusal
        self.body.drop(str(refusal))

    def stood(self, now: float) -> float:
        """Return for how many seconds the stream has stood, on the clock of the event loop."""
        return 0.0 if self._stood_since is None else now - self._stood_since

    async def items(self) -> AsyncGenerator[Connected | Event | Moved | Reset, None]:
        """Yield what comes, until the connection ends; `end` says how.

        Raises:
            StreamEnded: the server does not want this client back.
            Unauthorized: the token is spent, and there is no other.
            ProtocolError: what came was sent by another server.
        """
        self._pace.begin()
        pieces = self._response.aiter_bytes()
        try:
            async for piece in pieces:
                for sent in self._parser.feed(piece):
                    if (item := self._take(sent)) is not None:
                        yield item
        except Silence:
            self._pace.doubt()
            self.end = End("nothing was heard of the server for too long")
        except Dropped as dropped:
            self.end = End(str(dropped), at_once=True)
        except ProtocolError as error:
            self.end = End(str(error))
        except httpx.RequestError as error:
            self.end = End(f"the connection was lost: {type(error).__name__}")
        finally:
            self.end = self._announced_end or self.end
            # A caller that stops amid the stream leaves generators suspended: they are run to their end here.
            self.body.drop("it is over")
            with suppress(Dropped, Silence, httpx.RequestError):
                async for _ in pieces:
                    pass
        if self._refusal is not None:
            raise self._refusal

    def _take(self, sent: Sent) -> Connected | Event | Moved | Reset | None:
        if sent.data is None:
            return None if sent.id is None else self._moved(sent.id)
        match sent.type:
            case "connected":
                return self._connected(sent.id, json_object(sent.data))
            case "ping":
                self._pace.ping(json_object(sent.data).get("timestamp"))
                return None if sent.id is None else self._moved(sent.id)
            case "closing":
                self._closing(json_object(sent.data))
                return None
            case "reset":
                data = json_object(sent.data)
                channel = str(data.get("channel"))
                self._position.reset(channel)
                return Reset(channel, str(data.get("reason")))
        return self._event(sent.type, sent.data, sent.id)

    def _event(self, type: str, text: str, id: str | None) -> Event | None:
        data = json_or_text(text)
        channel = self._only or self._channel_in(data)
        if id is None:
            return Event("", channel, type, data, text)
        if (place := EventId.parse(id)) is not None:
            if not self._position.is_new(channel, place):
                return None
            self._position.advance(channel, place)
        self._position.move(id)
        return Event(id, channel, type, data, text)

    def _channel_in(self, data: object) -> str:
        """Return the channel that data names; "" where it names none, or, as only a text can, another."""
        channel = data.get("channel") if isinstance(data, dict) else None
        return channel if isinstance(channel, str) and self._channels.matches(channel) else ""

    def _moved(self, id: str) -> Moved:
        """Note that the stream has left out everything up to an id."""
        self._position.move(id)
        return Moved(id)

    def _connected(self, id: str | None, data: dict[str, Any]) -> Connected:
        try:
            connected = Connected(
                str(data["client_id"]),
                tuple(data["channels"]),
                bool(data["recovered"]),
                None if data["expires_in"] is None else float(data["expires_in"]),
                tuple(data.get("conflated", ())),
            )
        except (KeyError, TypeError, ValueError):
            raise ProtocolError("the first event is not as this server sends it") from None
        self._position.start(id)
        self._tokens.refused = False
        self._stood_since = asyncio.get_running_loop().time()
        return connected

    def _closing(self, data: dict[str, Any]) -> None:
        """Take the server's ``closing``, after which nothing comes."""
        reason, retry = str(data.get("reason")), data.get("retry")
        if isinstance(retry, int | float):
            self._announced_end = End(reason, wait=max(0.0, retry / 1000))
        elif reason == "ended":
            self.is_over = True
        elif reason == "kicked":
            self._refusal = StreamEnded(reason)
        elif not self._tokens.fresh:
            self._refusal = Unauthorized(f"the token is of no more use: {reason}", 401, reason)
        else:
            # Of a user who was revoked one fresh token shows whether the stream is granted again.
            self._tokens.refused = reason == "revoked"
            self._announced_end = End(reason, at_once=True)
        self.body.drop(reason)


@asynccontextmanager
async def connect(
    http: httpx.AsyncClient,
    address: str,
    client_id: str,
    tokens: StreamTokens,
    position: Position,
    pace: Pace,
    open_timeout: float,
    query: Mapping[str, str],
    channels: ChannelPatterns,
) -> AsyncIterator[Connection | None]:
    """Open a stream with a fresh token, and close it at the end; None where the server says that there is none.

    Args:
        http: the HTTP client.
        address: the stream's.
        client_id: its label.
        tokens: where its tokens come from.
        position: how far it has come.
        pace: of its pings.
        open_timeout: seconds that a token and the answer may take.
        query: where it begins and what it carries.
        channels: what it carries.

    Raises:
        StreamEnded: an administrator has kicked the session, which gets no stream and no token for one.
        Refused: it is refused for good.
        Unavailable: it may work later.
        CertificateRefused: the server's certificate is not valid.
        httpx.RequestError, OSError: there is no answer.
    """
    async with asyncio.timeout(open_timeout):
        token = await tokens.get()
        try:
            response = await _request(http, address, {"client_id": client_id, **query}, token, position)
        except Unauthorized:
            if not tokens.fresh or tokens.refused:
                raise
            tokens.refused = True
            token = await tokens.get()
            response = await _request(http, address, {"client_id": client_id, **query}, token, position)
    try:
        if response.status_code == 204:
            yield None
            return
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type != "text/event-stream":
            raise Unavailable("the answer is no event stream: another server, or a proxy, has answered")
        yield Connection(response, position, pace, tokens, channels)
    finally:
        await response.aclose()


async def _request(
    http: httpx.AsyncClient, address: str, query: Mapping[str, str], token: str | None, position: Position
) -> httpx.Response:
    """Return the answer, its body still to come; any that is no success is raised."""
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-cache"}
    if position.id is not None:
        headers["Last-Event-ID"] = position.id
    if token is not None:
        # No log of a server or proxy has it, as the URL's query may.
        headers["Authorization"] = f"Bearer {token}"
    request = http.build_request(
        "GET",
        address,
        params=query,
        headers={name.encode(): value.encode() for name, value in headers.items()},
        timeout=httpx.Timeout(CONNECT_TIMEOUT, read=None, pool=None),
    )
    response = await http.send(request, stream=True, follow_redirects=True)
    if response.status_code in (200, 204):
        return response
    try:
        await response.aread()
    finally:
        await response.aclose()
    refusal = failure(response)
    if isinstance(refusal, Forbidden):
        raise kicked_or(refusal)
    if not isinstance(refusal, Unavailable) and response.status_code not in FINAL:
        refusal = Unavailable(str(refusal), retry_after(response.headers))
    raise refusal
