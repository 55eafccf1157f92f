"""Tells the other processes that have the same event log open what one of them has committed, without delay.

Each has a *bell*: a Unix datagram socket of a random name in a directory beside the database. It is rung after a commit
and before the lock is released, with the events where they fit. A bell can be missed: it is full, or its ringer was
killed. So nothing depends on it but time: a gap in the numbers shows that one was missed, and the file is looked at
now and then all the same. Where there are no such sockets that is all there is.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from sse_app.core.events import Event
from sse_app.storage.ownership import require_closed, require_own
from sse_app.storage.sqlite import unusable
from sse_app.storage.unix_sockets import path_by_descriptor

VERSION = 1
"""Of what a bell says. One of another version says no more than that something has been committed."""

MAX_BELL_BYTES = 100_000
"""The largest datagram; a socket takes about twice as much as the system is installed."""

EVENTS_PER_BELL = 1_000
"""How many events a datagram has at most; more are read from the file."""

MAX_QUEUED = 10
"""How many datagrams wait for a socket, as the system is installed (net.unix.max_dgram_qlen); then it is full."""

LOOK_AGAIN = 1.0
"""How often the directory is looked at in any case, in seconds. A process that opens the log rings, which has it looked
at anew; to look at each commit would be 3 % of what a lone publish costs."""

RECENT = 0.1
"""A directory that was changed within so many seconds may change again without another time of change."""

_NAME = re.compile("[0-9a-f]{16}")


class Bell(msgspec.Struct, array_like=True, gc=False):
    """What a process tells of its commit: the head before and after it, and the events between, or none of them."""

    version: int
    epoch: str
    previous: int
    head: int
    events: list[Event] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Bell).decode


class Bells:
    """This process's bell, and those of the others.

    It is opened, read and closed on the event loop; the writer's thread rings those of the others.

    Args:
        database: the event log's file.
    """

    def __init__(self, database: Path) -> None:
        self.epoch = ""
        """Of the log. Where its file was replaced, those who have the one and the other open are told apart by it."""
        self._database = database
        self._directory = Path(f"{database}-bells")
        self._place = os.fspath(self._directory)
        self._descriptor = -1
        self._own: socket.socket | None = None
        self._name = ""
        # Memory of this size for each datagram would come from the kernel, and go back to it.
        self._received = memoryview(bytearray(2 * MAX_BELL_BYTES))
        self._others: dict[str, socket.socket] = {}
        self._seen: tuple[int, int] | None = None
        """The directory as it was when it was read last, or None where it is to be read again."""
        self._look_at = 0.0

    def open(self) -> None:
        """Make the directory and this process's bell in it, where there can be one; also anew, where it was removed.

        Raises:
            StateError: the directory cannot be made, or others than this user can use it.
        """
        self._close_own()
        for _ in range(3):  # another process may just be closing its own, and removing the directory
            try:
                self._open_directory()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise unusable(self._database, error) from None
            try:
                self._bind()
                return
            except OSError:  # as on a file system without such sockets
                os.close(self._descriptor)
                self._descriptor = -1

    def _open_directory(self) -> None:
        with suppress(FileExistsError):
            self._directory.mkdir(mode=0o700)
        require_own(self._directory, "the directory of bells")
        require_closed(self._directory, "the directory of bells")
        self.look_up()

    def look_up(self) -> None:
        """Open the directory without a bell of this process's own.

        Raises:
            OSError: there is none.
        """
        self._descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _bind(self) -> None:
        name = secrets.token_hex(8)
        own = _socket()
        try:
            os.fchmod(own.fileno(), 0o600)
            own.bind(self._address(name))
        except BaseException:
            own.close()
            raise
        self._own, self._name = own, name

    def close(self) -> None:
        """Remove this process's bell, and ring no other one any more."""
        self._close_own()
        with suppress(OSError):  # others have theirs in it
            self._directory.rmdir()
        for other in self._others.values():
            other.close()
        self._others.clear()

    def _close_own(self) -> None:
        own, self._own, name = self._own, None, self._name
        if own is not None:
            with suppress(OSError):
                os.unlink(name, dir_fd=self._descriptor)
            own.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def fileno(self) -> int:
        """Return the descriptor on which this process's bell is heard, or -1 where it has none."""
        return -1 if self._own is None else self._own.fileno()

    def is_in_place(self) -> bool:
        """Return whether there is a bell of this process, and others find it."""
        try:
            return self._own is not None and bool(os.stat(f"{self._place}/{self._name}"))
        except OSError:
            return False

    def receive(self) -> Bell | None:
        """Return what another process has rung next, or None; a head of 0 is that of one that is not understood."""
        if self._own is None:
            return None
        while True:
            try:
                data = self._received[: self._own.recv_into(self._received)]
            except OSError:  # there is none, mostly
                return None
            try:
                bell = _decode(data)
            except (ValueError, RecursionError):  # no msgpack, or no UTF-8 in it, or too many levels
                bell = None
            if bell is None or bell.version != VERSION:
                return Bell(VERSION, self.epoch, 0, 0)
            if bell.epoch == self.epoch:
                return bell

    def look_again(self) -> None:
        """Have the directory looked at before it is next said who has the log open: a process that opens it rings."""
        self._look_at = 0.0

    def others(self) -> bool:
        """Return whether other processes have the log open, as far as they have bells."""
        if (now := time.monotonic()) >= self._look_at:
            self._look_at = now + LOOK_AGAIN
            try:
                found = os.stat(self._place)
                as_it_is = (found.st_ino, found.st_mtime_ns)
                if as_it_is != self._seen:
                    self._read_directory()
                    recent = abs(time.time() - found.st_mtime) < RECENT
                    self._seen = None if recent else as_it_is
            except OSError:  # where it is gone it is made anew soon
                pass
        return bool(self._others)

    def _read_directory(self) -> None:
        names = {name for name in os.listdir(self._directory) if _NAME.fullmatch(name)} - {self._name}
        for name in self._others.keys() - names:
            self._others.pop(name).close()
        for name in names - self._others.keys():
            other = _socket()
            try:
                other.connect(self._address(name))
                self._others[name] = other
            except OSError as error:
                other.close()
                self._remove_stale(name, error)

    def ring(self, previous: int, head: int, events: Sequence[Event] = ()) -> None:
        """Tell the others what has been committed; one that cannot take it now finds it when it looks at the file."""
        bare = _encode(Bell(VERSION, self.epoch, previous, head))
        data = bare
        if events and len(events) <= EVENTS_PER_BELL:
            data = _encode(Bell(VERSION, self.epoch, previous, head, list(events)))
            if len(data) > MAX_BELL_BYTES:
                data = bare
        for name, other in list(self._others.items()):
            try:
                try:
                    other.send(data)
                except OSError as error:
                    if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                        raise
                    other.send(bare)
            except BlockingIOError:
                pass
            except OSError as error:
                self._others.pop(name).close()
                self._seen = None
                self.look_again()
                self._remove_stale(name, error)

    def _remove_stale(self, name: str, error: OSError) -> None:
        """Remove the bell of a process that was killed: its socket is there, and no process has it open."""
        if isinstance(error, ConnectionRefusedError):
            with suppress(OSError):
                os.unlink(name, dir_fd=self._descriptor)

    def _address(self, name: str) -> str:
        """Return the address of a bell."""
        return f"{path_by_descriptor(self._descriptor, self._directory)}/{name}"


def is_in_use(database: Path) -> bool:
    """Return whether processes have an event log open, as far as they have bells."""
    bells = Bells(database)
    try:
        bells.look_up()
        return bells.others()
    except FileNotFoundError:
        return False
    finally:
        bells.close()


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return made
