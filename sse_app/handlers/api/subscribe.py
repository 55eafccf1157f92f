"""How a stream opens: ``GET /api/v1/sse/{channels}``, from the request to its first events."""

from __future__ import annotations

import logging
import re
import secrets
import time

import orjson

from sse_app.auth.tokens.claims import Claims
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.core.channels import ADMIN_CHANNEL, ChannelName, parse_channels
from sse_app.core.errors import EventLogUnavailable, TokenRefused
from sse_app.core.events import EventId, timestamp
from sse_app.core.private_apis import drop_output_transforms
from sse_app.core.sse import chunk, encode_event, encode_json
from sse_app.handlers.api.running import RunningStream, fields_of
from sse_app.handlers.errors import RETRY_AFTER, Refusal
from sse_app.handlers.parsing import parse_position
from sse_app.streams.connection import take_over
from sse_app.streams.stream import Replay, Stream, Subscriber

log = logging.getLogger(__name__)

UNREADABLE = EventId("unreadable", 0)
"""Stands for a position that is no event id: in its form, and of no log's epoch."""

_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class StreamHandler(RunningStream):
    """Opens a stream, and keeps it open.

    Publishing to a channel is at the same path, so its ``post`` is inherited.
    """

    async def get(self, names: str) -> None:
        """Stream the channels' events until the client goes or the stream is ended."""
        with self.node.opening:
            stream = await self._open(names)
        if stream is not None:
            del names  # an idle stream holds no more than it needs
            await self.run(stream)

    # -- opening --------------------------------------------------------------------------------------------

    async def _open(self, names: str) -> Stream | None:
        """Check the request, register the stream and send its first events; None where it is turned away."""
        limits = self.node.settings.limits
        channels = parse_channels(names, limits.channels_per_stream)
        self.client_id = self._client_id()
        position = self._position()
        claims = self._claims()
        self._authorise(claims, channels)
        self._limit(claims)
        if (reason := self._cannot_serve()) is not None:
            await self._turn_away(reason)
            return None
        try:
            after, lost = await self._where(channels, position)
        except EventLogUnavailable:
            await self._turn_away("unavailable")
            return None
        return await self._begin(claims, channels, position, after, lost)

    def _cannot_serve(self) -> str | None:
        """Return why no stream can be served just now, or None."""
        node = self.node
        if node.draining:
            return "shutdown"
        full = len(node.hub.streams) >= node.stream_capacity
        return "unavailable" if full or not node.eventlog.available else None

    def _client_id(self) -> str:
        values = self.request.arguments.get("client_id", [])
        if not values or values == [b""]:
            return secrets.token_urlsafe(9)
        text = values[0].decode("latin-1")
        if len(values) > 1 or not _CLIENT_ID.fullmatch(text):
            raise Refusal(400, "invalid_client_id", "client_id must match [A-Za-z0-9._-]{1,64}")
        return text

    def _position(self) -> str | None:
        """Return where to resume: the header wins, for native reconnects repeat the old URL."""
        header = [
            value.encode("latin-1", "replace") for value in self.request.headers.get_list("Last-Event-ID")
        ]
        query = parse_position(self.request.arguments.get("last_event_id", []), "last_event_id")
        return parse_position([b",".join(header)], "Last-Event-ID") or query

    def _claims(self) -> Claims:
        tokens = self.request.arguments.get("token", [])
        if len(tokens) != 1:
            raise TokenRefused("this takes one stream token in the query: ?token=…", f"{len(tokens)} tokens")
        self.claims = self.node.tokens.verify(tokens[0].decode("latin-1"), TokenKind.STREAM)
        return self.claims

    def _authorise(self, claims: Claims, channels: tuple[ChannelName, ...]) -> None:
        for channel in channels:
            if not claims.grants.may_subscribe(channel):
                raise Refusal(403, "forbidden", f"the token does not allow to subscribe to {channel}")
        for channel in channels:
            if channel != ADMIN_CHANNEL:
                self.node.publisher.require_known(channel)

    def _limit(self, claims: Claims) -> None:
        limits = self.node.settings.limits
        hub = self.node.hub
        if len(hub.streams_of_subject.get(claims.subject, ())) >= limits.streams_per_user:
            message = f"this user has {limits.streams_per_user} streams open, which is the limit"
            raise Refusal(429, "too_many_streams", message, Retry_After=RETRY_AFTER)
        if hub.streams_of_address[self.address] >= limits.streams_per_address:
            message = f"this address has {limits.streams_per_address} streams open, which is the limit"
            raise Refusal(429, "too_many_streams", message, Retry_After=RETRY_AFTER)

    async def _where(
        self, channels: tuple[ChannelName, ...], position: str | None
    ) -> tuple[EventId, dict[ChannelName, str]]:
        """Return from where to go on, and which channels cannot, each with the reason."""
        hub = self.node.hub
        if position is None:
            return hub.head, {}
        after = EventId.parse(position)
        lost = (
            dict.fromkeys(channels, "position_unreadable")
            if after is None
            else await self.node.eventlog.lost(channels, after)
        )
        if after is None or len(lost) == len(channels):
            return hub.head, lost
        await hub.reached(after.seq)
        return after, lost

    async def _begin(
        self,
        claims: Claims,
        channels: tuple[ChannelName, ...],
        position: str | None,
        after: EventId,
        lost: dict[ChannelName, str],
    ) -> Stream:
        """Register the stream, send the headers and the first events, and take over the connection."""
        assert self.client_id is not None
        hub = self.node.hub
        chunked = self.request.version != "HTTP/1.0"
        subscriber = Subscriber(self.client_id, claims.lease, self.address)
        stream = hub.register(subscriber, channels, chunked=chunked)
        self.node.metrics.streams_opened += 1
        self.node.metrics.streams_resumed += position is not None
        try:
            self.node.tokens.require_in_force(claims)  # from here on a revocation finds the stream
            stream.retry = hub.jittered_retry()
            stream.replay = Replay(after.seq, tuple(lost), hub.head.seq if lost else 0)
            connection = take_over(self.request, self.node.settings, hub.disconnects, stream.woken_by_close)
            stream.attach(connection)
            self._stream_headers()
            drop_output_transforms(self)  # an application around us may have one that compresses
            first = self._first_events(stream, position, after, lost)
            self.write(chunk(first) if chunked else first)
            await self.flush()
            self.let_go(connection)
            self.node.keepalive.watch(stream)
        except BaseException:
            hub.leave(stream)
            raise
        if log.isEnabledFor(logging.DEBUG):  # its end is told in any case
            log.debug("stream_opened", extra=fields_of(stream, resumed=position is not None and not lost))
        return stream

    def _stream_headers(self) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-store, no-transform")
        self.set_header("X-Accel-Buffering", "no")

    def _first_events(
        self, stream: Stream, position: str | None, after: EventId, lost: dict[ChannelName, str]
    ) -> bytes:
        """Return ``connected`` and what ``reset`` there is.

        The id is the position asked for, also where it is lost: a client that is cut off in between comes
        back with it, and is told again.
        """
        subscriber = stream.subscriber
        now = time.time()
        connected = {
            "client_id": subscriber.client_id,
            "channel": stream.channels[0],
            "channels": stream.channels,
            "message": f"connected to {', '.join(stream.channels)}",
            "recovered": position is not None and not lost,
            "retry": stream.retry,
            "expires_in": max(0, int(subscriber.lease.expires_at - now)),
            "timestamp": timestamp(now),
        }
        id = after if position is None else EventId.parse(position) or UNREADABLE
        first = encode_event(str(id).encode(), b"connected", orjson.dumps(connected), stream.retry)
        return first + b"".join(
            encode_json("reset", {"channel": channel, "reason": reason}) for channel, reason in lost.items()
        )

    async def _turn_away(self, reason: str) -> None:
        """Answer a stream that cannot be served just now: a native client gives up on any status but 200."""
        self.node.metrics.refusals[reason] += 1
        retry = self.node.hub.jittered_retry()
        self._stream_headers()
        self.set_header("Connection", "close")
        # Else Tornado promises HTTP/1.0 clients a second response.
        self.request.headers.pop("Connection", None)
        self.write(encode_json("closing", {"reason": reason, "retry": retry}, retry=retry))
        await self.finish()
