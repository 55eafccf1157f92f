"""Publishing over HTTP, one event or a batch, and reading the past of a channel."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Awaitable

import orjson

from sse_app.auth.tokens.claims import Claims
from sse_app.core.channels import parse_channel, parse_channel_or_pattern
from sse_app.core.errors import EventLogUnavailable, Forbidden, InvalidInput, TooManyPublishes
from sse_app.core.events import TEXT, Event, EventId, NewEvent
from sse_app.eventlog.base import MAX_SEQ, IdempotencyKey
from sse_app.handlers.base import SMALL_BODY_BYTES, ApiHandler, BodyHandler
from sse_app.handlers.errors import RETRY_AFTER, Refusal
from sse_app.handlers.parsing import parse_position
from sse_app.handlers.text_body import EventQuery, is_text, parse_event_query, refuse_event_query, text_of
from sse_app.streams.publisher import data_of, refuse_unknown

HISTORY_LIMIT = 100
HISTORY_MAX = 1000

_FORM = "application/x-www-form-urlencoded"
_FOR_STREAMS = ("from", "last", "since", "types", "rate", "last_event_id")
"""Parameters of a stream that the history does not have. Ignored, they would bring other events than were asked for."""

_ONE = '{"event", "data"}'
_BATCH = '{"events": [{"channel", "event", "data"}, …]}; one event alone goes to /api/v1/sse/CHANNEL'
_FORM_HINT = (
    "; Content-Type says that it is a form, as curl -d has it: set application/json,"
    " or text/plain to publish the body as it is with ?event=TYPE"
)

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class _Publishing(BodyHandler):
    """What single and batch publishing share."""

    stepped = frozenset({"POST"})

    @property
    def body_limit(self) -> int:
        """How many bytes of body a request may have: as many as are configured."""
        return self.node.settings.limits.body_bytes

    def prepare(self) -> Awaitable[None] | None:
        """Refuse a token that cannot publish before a large body is kept; each is looked at again in the end."""
        ready = super().prepare()
        length = self.request.headers.get("Content-Length", "")
        is_small = length.isascii() and length.isdigit() and int(length) <= SMALL_BODY_BYTES
        if self.request.method != "POST":
            self.keeps_body = False
        elif not is_small and not self.access_claims().grants.publish.texts:
            raise Forbidden("the token does not allow to publish to any channel")
        return ready

    async def store(
        self, claims: Claims, events: list[NewEvent], body: bytes, query: EventQuery | None = None
    ) -> list[EventId | None]:
        """Append the events, at most once for an ``Idempotency-Key`` of this subject.

        It does nothing for those that are not stored.

        Args:
            claims: of the publisher.
            events: of the right form.
            body: of the request.
            query: that of a text; the key stands for it too.
        """
        if not (self.node.lifecycle.ready or self.node.lifecycle.draining):  # mounted, and not started
            raise Refusal(503, "starting", "the server has not started", Retry_After=RETRY_AFTER)
        if self.node.publisher.waiting >= self.node.most_publishing:
            raise TooManyPublishes
        wait = self.node.publish_rate.take(claims.token_id, len(events), time.monotonic())
        if wait:
            rate = self.node.publish_rate.rate
            message = f"this token publishes more than {rate:g} events a second, which is the limit"
            raise Refusal(429, "too_many_events", message, Retry_After=str(math.ceil(wait)))
        key = self.request.headers.get("Idempotency-Key")
        idempotency = None
        if key is not None:
            if not _KEY.fullmatch(key):
                raise Refusal(400, "invalid_key", "Idempotency-Key must be 1 to 255 visible ASCII characters")
            path = self.request.path if query is None else f"{self.request.path}?{query}"
            idempotency = IdempotencyKey.of(claims.subject, key, path, body)
        begun = time.perf_counter()
        ids = await self.node.publisher.append(events, idempotency)
        self.node.metrics.publish_seconds.observe(time.perf_counter() - begun)
        return ids


class PublishHandler(_Publishing):
    """``POST /api/v1/sse/{channel}``: one event."""

    async def post(self, name: str) -> None:
        """Store the event and answer with its id."""
        channel = parse_channel(name)
        claims = self.access_claims()
        claims.grants.require_publish(channel)
        self.node.publisher.require_known(channel)
        body, query = self.body(), None
        content_type = self.request.headers.get("Content-Type", "")
        check = self.node.publisher.check
        if is_text(content_type):
            query = parse_event_query(self.request.arguments)
            event = check(channel, query.event, text_of(body, content_type), query.retry, query.final)
        else:
            refuse_event_query(self.request.arguments, content_type)
            request = self.json_object(body, _FORM_HINT if content_type.startswith(_FORM) else "", _ONE)
            if "events" in request:
                raise InvalidInput("unknown member events: several events go to /api/v1/sse", "events")
            refuse_unknown(request, ("event", "data", "retry", "final"))
            type, data = request.get("event"), data_of(request)
            event = check(channel, type, data, request.get("retry"), request.get("final", False))
        ids = await self.store(claims, [event], body, query)
        if ids[0] is None:
            self.write_json({"channel": channel}, 202)
        else:
            self.write_json({"id": str(ids[0]), "channel": channel}, 201)


class BatchHandler(_Publishing):
    """``POST /api/v1/sse``: several events, all or none, in order."""

    async def post(self) -> None:
        """Store the events and answer with their ids, in order."""
        claims = self.access_claims()
        body = self.body()
        request = self.json_object(body, form=_BATCH)
        if "events" not in request:
            raise InvalidInput(f"events is missing: this takes {_BATCH}", "events")
        refuse_unknown(request, ("events",))
        events = self.node.publisher.check_batch(request.get("events"))
        channels = dict.fromkeys(event.channel for event in events)
        for channel in channels:
            claims.grants.require_publish(channel)
        for channel in channels:
            self.node.publisher.require_known(channel)
        ids = await self.store(claims, events, body)
        stored = any(id is not None for id in ids)
        self.write_json({"ids": [id and str(id) for id in ids]}, 201 if stored else 202)


class HistoryHandler(ApiHandler):
    """``GET /api/v1/sse/{channel}/history``: what the log keeps of a channel, or of all channels of a pattern."""

    async def get(self, name: str) -> None:
        """Answer with the first events after a position, or without one with the last there are; oldest first."""
        channel = parse_channel_or_pattern(name)
        query = self.request.arguments
        if foreign := next((each for each in _FOR_STREAMS if each in query), ""):
            raise Refusal(400, "bad_request", f"{foreign} is for streams; the history takes after and limit")
        position = parse_position(query.get("after", []), "after")
        after = None if position is None else EventId.parse(position)
        if position is not None and after is None:
            raise Refusal(400, "invalid_position", "after is no event id; one is such as 73cbd1a7-12")
        limit = self.number("limit", HISTORY_LIMIT, 1, HISTORY_MAX)
        is_public = self.node.publisher.is_public(channel)
        if not is_public or self.has_bearer_token:
            claims = self.access_claims()
            if not is_public:
                claims.grants.require_subscribe(channel)
        self.node.publisher.require_known(channel)
        if "*" not in channel and not self.node.channels.stores(channel):
            self.write_json({"events": [], "complete": True})
            return
        eventlog = self.node.eventlog
        if after is None:
            events, complete = await eventlog.latest([channel], limit), True
        else:
            events, complete = await self._after(channel, after, limit)
        self.write_json(
            {"events": [_item(eventlog.head.epoch, event) for event in events], "complete": complete}
        )

    async def _after(self, channel: str, after: EventId, limit: int) -> tuple[list[Event], bool]:
        """Return the first events after a position, and whether there is no gap between it and them.

        Raises:
            EventLogUnavailable: the log cannot be read.
        """
        eventlog = self.node.eventlog
        lost = await eventlog.lost([channel], after)
        is_of_log = set(lost.values()) <= {"history_trimmed"}
        reached, complete = after.seq if is_of_log else 0, not lost
        while True:
            # To the end of the log, not of what this process has heard of: another may have acknowledged more.
            page = await eventlog.replay([channel], reached, MAX_SEQ, limit)
            if is_of_log and after.epoch != eventlog.head.epoch:
                raise EventLogUnavailable("the log was replaced while it was read")
            complete = complete and not page.gap
            if page.events or not page.more:
                return page.events, complete
            reached = page.reached  # of a pattern a page may have none


def _item(epoch: str, event: Event) -> dict[str, object]:
    """Return an event of the log as the history shows it: a text as a JSON string; other data is JSON already."""
    return {
        "id": str(EventId(epoch, event.seq)),
        "channel": event.channel,
        "event": event.type,
        "data": event.data.decode() if event.flags & TEXT else orjson.Fragment(event.data),
    }
