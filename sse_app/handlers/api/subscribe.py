"""``GET /api/v1/sse/{channels}``: the HTTP of a stream; `streams.admission` and `streams.pump` do the rest."""

from __future__ import annotations

import logging
import re
import secrets

from sse_app.auth.tokens.claims import Claims
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.core.channels import parse_channels
from sse_app.core.errors import TokenRefused
from sse_app.core.framing import framing_for
from sse_app.core.private_apis import drop_output_transforms
from sse_app.handlers.api.publish import PublishHandler
from sse_app.handlers.errors import Refusal
from sse_app.handlers.parsing import parse_position
from sse_app.handlers.stream_query import parse_beginning, parse_rate, parse_types
from sse_app.streams.admission import NothingToCome, Subscription, TurnedAway
from sse_app.streams.connection import take_over
from sse_app.streams.stream import Stream

log = logging.getLogger(__name__)

_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class StreamHandler(PublishHandler):
    """Opens a stream, and writes it until it has come to the present.

    Publishing to a channel is at the same path, so its ``post`` is inherited.
    """

    stepped = frozenset({"GET", "POST"})

    async def get(self, names: str) -> None:
        """Open a stream of the channels' events, and write what it is behind by.

        The response does not end with this method: from then on the hub writes to the bare connection.
        """
        with self.node.opening:
            stream = await self._open(names)
        if stream is not None:
            await self.node.pump.run(stream, self)
            self.detach()
            self.ui.clear()  # it refers to the handler, which would wait for the garbage collector

    async def head(self, names: str) -> None:
        """Answer what ``get`` would, with the head of a stream alone; nothing is opened."""
        wanted = self._wanted(names)
        if await self.node.admission.check(self._stream_claims(), wanted):
            self._set_stream_headers()
            await self.flush()  # else Tornado would say that a stream has no bytes
        else:
            self.set_status(204)

    async def _open(self, names: str) -> Stream | None:
        """Return the stream with its first events sent, or None where it was turned away."""
        node = self.node
        wanted = self._wanted(names)
        admitted = await node.admission.admit(self._stream_claims(), wanted)
        if isinstance(admitted, NothingToCome):
            self.set_status(204)  # with which a native client stops (WHATWG HTML §9.2.2)
            return None
        if isinstance(admitted, TurnedAway):
            await self._turn_away(admitted)
            return None
        stream = admitted.stream
        try:
            stream.attach(take_over(self.request, stream.framing, node.settings, node.hub.disconnects))
            self._set_stream_headers()
            drop_output_transforms(self)  # an application around this one may have some that compress
            self.write(admitted.first_events)
            await self.flush()
        except BaseException:
            node.admission.abandon(stream)
            stream.close()  # an error can no longer be answered: the response is framed as a stream
            raise
        if log.isEnabledFor(logging.DEBUG):  # its end is logged in any case
            log.debug("stream_opened", extra=stream.log_fields(resumed=admitted.recovered))
        return stream

    def _wanted(self, names: str) -> Subscription:
        limits, query = self.node.settings.limits, self.request.arguments
        channels = parse_channels(names, limits.channels_per_stream)
        self.client_id = self._client_id()
        types = parse_types(query)
        return Subscription(
            self.client_id,
            channels,
            self._position(),
            self.address,
            framing_for(self.request.version),
            parse_beginning(query, limits.last_events, types),
            types,
            parse_rate(query),
        )

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
        query = self.request.arguments.get("last_event_id")
        position = parse_position(query, "last_event_id") if query else None
        header = self.request.headers.get_list("Last-Event-ID")
        if header:
            given = b",".join([value.encode("latin-1", "replace") for value in header])
            position = parse_position([given], "Last-Event-ID") or position
        return position

    def _stream_claims(self) -> Claims | None:
        """Return the claims of the request's stream token; None where there is none, as public channels allow.

        It stands in the query, for a native client can set no header, or in the Authorization header. What that has of
        another scheme is a proxy's, such as a browser's answer to Basic.

        Raises:
            Refusal: there is one in both places (RFC 6750 §2).
            TokenRefused: it is not valid, or not the only one.
        """
        tokens = self.request.arguments.get("token", [])
        if self.has_bearer_token:
            if tokens:
                message = "a stream token stands in the query or in the Authorization header, not in both"
                raise Refusal(400, "invalid_request", message)
            token = self.bearer_token()
        elif not tokens:
            return None
        elif len(tokens) == 1:
            token = tokens[0].decode("latin-1")
        else:
            raise TokenRefused("this takes one stream token", f"{len(tokens)} tokens")
        self.claims = self.node.tokens.verify(token, TokenKind.STREAM)
        return self.claims

    def _set_stream_headers(self) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-store, no-transform")
        self.set_header("X-Accel-Buffering", "no")

    async def _turn_away(self, turned_away: TurnedAway) -> None:
        """Answer with ``closing`` and 200: a native client gives up for good on any other status."""
        self._set_stream_headers()
        self.set_header("Connection", "close")
        # Else Tornado promises HTTP/1.0 clients a second response.
        self.request.headers.pop("Connection", None)
        self.write(turned_away.closing)
        await self.finish()
