"""What publishers and clients wrote down while a server was harmed: one JSON object a line, in order.

Each line is written at once, and no process waits for the disk: a journal is complete as long as the machine lives.
Times are those of `time.monotonic`, the same in all processes of a machine.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec


def payload_of(data: Mapping[str, Any]) -> str:
    """Return the payload of an event: its name, and a checksum of all that its publisher has given it.

    Args:
        data: of the event, perhaps with what the server adds.
    """
    published = {name: value for name, value in data.items() if name not in ("channel", "timestamp")}
    return f"{data['of']} {zlib.crc32(json.dumps(published, sort_keys=True).encode()):08x}"


class Record(msgspec.Struct, tag_field="what", frozen=True, kw_only=True):
    """Something that happened.

    Attributes:
        at: when, in seconds.
    """

    at: float


class Sent(Record, tag="sent", frozen=True, kw_only=True):
    """A publisher sends a request, perhaps not for the first time.

    Attributes:
        name: of the request, the same when it is repeated; no other has it.
        events: of each of its events the channel and the payload; no two events of a run have the same payload.
    """

    name: str
    events: Sequence[tuple[str, str]]


class Answered(Record, tag="answered", frozen=True, kw_only=True):
    """A publisher has got an answer to a request.

    Attributes:
        name: of the request.
        status: of the answer; 0 where the connection ended without one.
        ids: of its events, where they were acknowledged.
        code: of the error, where it is one.
    """

    name: str
    status: int
    ids: Sequence[str] = ()
    code: str = ""


class Asked(Record, tag="asked", frozen=True, kw_only=True):
    """A client asks for a stream.

    Attributes:
        channels: of the stream; none is a pattern.
        position: the id after which it is to continue; empty where it is to begin with what is new.
    """

    channels: Sequence[str]
    position: str = ""


class Opened(Record, tag="opened", frozen=True, kw_only=True):
    """A client has got ``connected``.

    Attributes:
        id: its id, the position before the first event that follows.
        recovered: whether it says that nothing is missing.
    """

    id: str
    recovered: bool


class Received(Record, tag="received", frozen=True, kw_only=True):
    """A client has got an event.

    Attributes:
        id: of the event.
        channel, payload, timestamp: as they stand in its data.
    """

    id: str
    channel: str
    payload: str
    timestamp: str = ""


class Reset(Record, tag="reset", frozen=True, kw_only=True):
    """A client was told that a channel cannot be continued without a gap."""

    channel: str
    reason: str


class Pinged(Record, tag="pinged", frozen=True, kw_only=True):
    """A client has got a ``ping``.

    Attributes:
        id: the position that it tells; empty where it tells none.
    """

    id: str = ""


class Ended(Record, tag="ended", frozen=True, kw_only=True):
    """A client's stream has ended.

    Attributes:
        reason: that of ``closing``; empty where there was no ``closing``.
        status: of an answer that was no stream; 0 where there was a stream, or no answer.
        left: whether the client has ended it.
    """

    reason: str = ""
    status: int = 0
    left: bool = False


class Malformed(Record, tag="malformed", frozen=True, kw_only=True):
    """A client has got what no server may send.

    Attributes:
        why: what is wrong with it.
    """

    why: str


class Left(Record, tag="left", frozen=True, kw_only=True):
    """A client leaves for good, whatever else was due to it."""


AnyRecord = Sent | Answered | Asked | Opened | Received | Reset | Pinged | Ended | Malformed | Left


class Journal:
    """Writes down what happens to one publisher or client.

    Args:
        path: of the file, which is appended to.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, record: AnyRecord) -> None:
        """Write down one thing."""
        self._file.write(msgspec.json.encode(record) + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> Iterator[AnyRecord]:
    """Yield what a journal says. A last line that its writer was killed in is left out.

    Raises:
        msgspec.ValidationError: a line is none of a journal.
    """
    decode: Any = msgspec.json.Decoder(AnyRecord).decode
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield decode(line)
