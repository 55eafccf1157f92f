"""One client's stream: whose it is, its channels, and what waits to be written to it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from sse_app.auth.tokens.claims import Lease
from sse_app.core.framing import Framing
from sse_app.core.selection import Interest
from sse_app.core.sse import encode_closing
from sse_app.streams.connection import StreamConnection
from sse_app.streams.fanout import FanoutGroup
from sse_app.streams.send_table import NONE, SendTable

FLUSH_BYTES = 64 * 1024
"""How much a flush takes at a time, so that a long backlog shows progress."""

OFFERED_SHARE = 4
"""What may be dropped is queued for a stream up to this part of its backlog limit."""


class Subscriber(NamedTuple):
    """Whose stream it is, and where its connection came from.

    Args:
        client_id: the client's label.
        lease: the token that the stream depends on; `NO_TOKEN` where there is none.
        address: of the connection.
        earlier: the tokens that it had before it was renewed, unless they have expired: a client that is cut
            off comes back with its first URL, so they are still its tokens.
    """

    client_id: str
    lease: Lease
    address: str
    earlier: tuple[Lease, ...] = ()

    @property
    def tokens(self) -> tuple[Lease, ...]:
        """Every token in force that this stream was opened or renewed with."""
        return () if self.lease.is_anonymous else (self.lease, *self.earlier)

    def renewed(self, lease: Lease, now: float) -> Subscriber:
        """Return the subscriber with a fresh token."""
        earlier = [
            token for token in self.tokens if token.expires_at > now and token.token_id != lease.token_id
        ]
        return self._replace(lease=lease, earlier=tuple(earlier))


class Replay(NamedTuple):
    """How far a stream has come that is not at the head yet.

    Args:
        after: the ``seq`` up to which it has its events.
        floors: the ``seq`` which the events of a channel, or of the channels of a pattern, follow where that is
            further: of those that could not be continued, the head at their reset.
    """

    after: int
    floors: dict[str, int] = {}  # noqa: RUF012 - never changed


class Stream:
    """The state of one open stream.

    A stream is *parked* when it has caught up and nothing waits: then the hub sends straight to the socket, and no
    flush loop is there. Otherwise it is *behind*: what the hub has for it waits here, and a flush loop writes it.

    Args:
        number: unique, also among the streams of earlier processes.
        subscriber: whose stream it is.
        channels: names and patterns, in the order asked for.
        interest: in the events of these channels.
        framing: how its bytes stand in the body of the response.
        backlog_limit: how many bytes may wait before the stream is ended as ``slow_consumer``.
        laggards: the set that the stream is in while it is behind.
    """

    __slots__ = (
        "_backlog_limit",
        "_laggards",
        "_pending",
        "_pending_bytes",
        "_resume",
        "adopted",
        "begun_at",
        "channels",
        "connection",
        "deadline",
        "ending",
        "ending_at",
        "framing",
        "group",
        "interest",
        "number",
        "opened_at",
        "ping_slot",
        "ping_turn",
        "replay",
        "retry",
        "slot",
        "subscriber",
        "ungranted",
    )

    def __init__(
        self,
        number: int,
        subscriber: Subscriber,
        channels: tuple[str, ...],
        *,
        interest: Interest,
        framing: Framing,
        backlog_limit: int,
        laggards: set[Stream],
    ) -> None:
        self.number = number
        self.subscriber = subscriber
        self.channels = channels
        self.interest = interest
        self.framing = framing
        self.opened_at = now = time.time()
        self.begun_at = time.monotonic()
        """When it was opened, on the monotonic clock, which is the same for all processes of a machine."""
        self.deadline = self.begun_at + subscriber.lease.remaining(now)
        """When its token has lived for as long as was left of its life when it was opened or renewed (as above)."""
        self.connection: StreamConnection | None = None
        self.group: FanoutGroup[Stream] | None = None
        self.slot = -1
        self.ping_turn: SendTable[Stream] | None = None
        """The streams that are pinged together with it."""
        self.ping_slot = -1
        self.ending: str | None = None
        self.ending_at = 0.0
        self.retry = 0
        self.replay: Replay | None = None
        """What is still to be replayed; None once the stream has joined the present."""
        self.adopted = False
        """Whether it began in an earlier process."""
        self.ungranted: tuple[str, ...] = ()
        """Those of its channels that its token does not grant: it has them for as long as they are public."""
        self._backlog_limit = backlog_limit
        self._laggards = laggards
        self._pending: list[bytes] | None = None
        self._pending_bytes = 0
        self._resume: Callable[[Stream], None] | None = None
        """Starts a flush loop; there while the stream is parked."""

    def attach(self, connection: StreamConnection) -> None:
        """Write to this connection from now on; the stream is behind until it is parked."""
        self.connection = connection
        connection.owner = self
        self._laggards.add(self)

    @property
    def closed(self) -> bool:
        """Whether the connection has ended (not: is about to)."""
        return self.connection is not None and self.connection.closed

    @property
    def parked(self) -> bool:
        """Whether it has caught up, and nothing waits."""
        return self._resume is not None

    @property
    def settled(self) -> bool:
        """Whether it is parked, and its client is known to have acknowledged all that was sent to it."""
        return self._resume is not None and self.connection is not None and self.connection.settled()

    @property
    def waits(self) -> bool:
        """Whether there is something to write, on a connection that has not ended."""
        assert self.connection is not None
        return not self.connection.closed and (bool(self._pending) or self.connection.unsent_bytes > 0)

    @property
    def stalled_since(self) -> float:
        """When bytes last went out while some were waiting, or ``closing`` was queued (`time.monotonic`)."""
        if self.ending is not None:
            return self.ending_at
        return self.connection.progressed_at if self.connection and self.connection.unsent_bytes else math.inf

    @property
    def backlog_bytes(self) -> int:
        """How many bytes wait to be written."""
        return self._pending_bytes + (self.connection.unsent_bytes if self.connection else 0)

    @property
    def parked_socket(self) -> int:
        """The descriptor of its socket, which takes its bytes while it is parked; else `NONE`."""
        return NONE if self._resume is None or self.connection is None else self.connection.descriptor

    def write(self, frames: bytes) -> None:
        """Write whole frames, framed for this stream, now or when their turn comes."""
        if self._resume is None or self.connection is None:
            self.enqueue(frames)
            return
        try:
            sent = self.connection.send(frames)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent != len(frames):
            self.fall_behind(frames, sent)

    def enqueue(self, frames: bytes) -> None:
        """Queue frames while the stream is behind."""
        if self.ending is None:
            if self._pending_bytes and self.backlog_bytes > self._backlog_limit:
                self.end("slow_consumer", self.retry)
            else:
                self._push(frames)

    def offer(self, frames: bytes) -> bool:
        """Queue frames that may be dropped while the stream is behind, and return whether that was done.

        They take a share of the backlog at most, so that they never end a stream as ``slow_consumer``.
        """
        if self.ending is not None or self.backlog_bytes + len(frames) > self._backlog_limit // OFFERED_SHARE:
            return False
        self._push(frames)
        return True

    def fall_behind(self, frames: bytes, sent: int) -> None:
        """Be parked no longer: the socket accepted only ``sent`` bytes of the frames."""
        assert self.connection is not None
        self._mark_behind()
        self.connection.queue_rest(frames, sent)
        self._wake()

    def end(self, reason: str, retry: int | None, *, before: bytes = b"") -> None:
        """End the stream with ``closing``. What waits is dropped: the client resumes by its last id.

        Args:
            reason: for the client, e.g. ``token_expired``.
            retry: when to come back, in milliseconds; None when this token is of no more use.
            before: what is sent before that, not framed.
        """
        if self.ending is not None or self.closed:
            return
        self.ending = reason
        self.ending_at = time.monotonic()
        self._pending = None
        self._pending_bytes = 0
        self._mark_behind()
        self._push(self.framing.frame(before + encode_closing(reason, retry)))

    def log_fields(self, **more: object) -> dict[str, object]:
        """Return what a log line says of the stream."""
        return {
            "client_id": self.subscriber.client_id,
            "subject": self.subscriber.lease.subject,
            "channels": ",".join(self.channels),
            "address": self.subscriber.address,
            **more,
        }

    def close(self) -> None:
        """Close the connection at once."""
        if self.connection is not None:
            self.connection.close()

    def unsent(self) -> bytes:
        """Return all that is still to be written, the rest of a frame first."""
        rest = self.connection.unsent() if self.connection else []
        return b"".join([*rest, *(self._pending or ())])

    def park(self, resume: Callable[[Stream], None]) -> None:
        """Have pings, and events if it has joined, sent straight to the socket; it has nothing to write.

        Args:
            resume: called once there is something to write, or the connection has ended.
        """
        assert self.connection is not None
        self._resume = resume
        self._laggards.discard(self)
        self._use(self.connection.descriptor)

    def resume(self) -> None:
        """Have a stream that is parked read on from its position."""
        self._mark_behind()
        self._wake()

    def take(self) -> bytes:
        """Return what waits, as one piece of about `FLUSH_BYTES` at the most."""
        pending = self._pending
        if not pending:
            return b""
        if self._pending_bytes <= FLUSH_BYTES or len(pending) == 1:
            self._pending = None
            self._pending_bytes = 0
            return pending[0] if len(pending) == 1 else b"".join(pending)
        count = size = 0
        while count < len(pending) and (not count or size + len(pending[count]) <= FLUSH_BYTES):
            size += len(pending[count])
            count += 1
        piece = b"".join(pending[:count])
        del pending[:count]
        self._pending_bytes -= size
        return piece

    def connection_closed(self) -> None:
        """End the stream if it is parked; a flush loop that is at work looks by itself."""
        self._use(NONE)
        self._wake()

    def _push(self, frames: bytes) -> None:
        if self._pending is None:
            self._pending = []
        self._pending.append(frames)
        self._pending_bytes += len(frames)
        self._laggards.add(self)
        self._wake()

    def _mark_behind(self) -> None:
        self._laggards.add(self)
        self._use(NONE)

    def _use(self, sock: int) -> None:
        """Have the tables that the stream is in send its bytes to this descriptor, or have them queued."""
        if self.group is not None:
            self.group.sockets[self.slot] = sock
        if self.ping_turn is not None:
            self.ping_turn.sockets[self.ping_slot] = sock

    def _wake(self) -> None:
        """Be parked no longer, if the stream is."""
        resume, self._resume = self._resume, None
        if resume is not None:
            resume(self)
