"""Many sends in one system call, by io_uring(7): the rings that a process shares with the kernel, without a library.

The layout is that of ``linux/io_uring.h``. The kernel takes the sends, does them and writes their results within the
system call of one thread, so no memory barriers are needed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from array import array
from contextlib import suppress

ENTRIES = 128
"""How many sends one system call does at the most; a power of two."""

_RESULTS = 2 * ENTRIES
"""How many results there is room for: the kernel's own choice."""

_SETUP, _ENTER = 425, 426
"""The numbers of the system calls, on all processors but Alpha."""

_SETUP_FLAGS = 1 << 7 | 1 << 12 | 1 << 13
"""``IORING_SETUP_SUBMIT_ALL``: a send that fails does not hold back the next ones; ``_SINGLE_ISSUER`` and
``_DEFER_TASKRUN``: only one thread uses the ring, so the kernel needs no locks. Before Linux 6.1 it refuses them."""

_GET_EVENTS = 1
"""``IORING_ENTER_GETEVENTS``: return when the results are there."""

# Where ``struct io_uring_params`` has what is needed of it, counted in 32-bit words.
_PARAMS_WORDS = 30
_FLAGS, _HEAD, _TAIL, _ORDER, _RESULTS_HEAD, _RESULTS_TAIL, _RESULTS_AT = 2, 10, 11, 16, 20, 21, 25

_SENDS_OFFSET = 0x10000000
"""``IORING_OFF_SQES``."""

_SEND = struct.Struct("=BxHi8xQIIQ24x")
"""``opcode``, ``ioprio``, ``fd``, ``addr``, ``len``, ``msg_flags`` and ``user_data`` of ``struct io_uring_sqe``."""
_OPCODE = 26
"""``IORING_OP_SEND``."""
_MESSAGE_FLAGS = 0x4000 | 0x40
"""``MSG_NOSIGNAL | MSG_DONTWAIT``."""

_RESULT_SIZE = 16
"""Of ``struct io_uring_cqe``: ``user_data`` (64 bits), ``res`` and ``flags`` (32 bits each)."""

_libc = ctypes.CDLL(None, use_errno=True)


def _system_call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class SendRing:
    """A ring of sends, for one thread.

    Raises:
        OSError: the kernel has no such rings or is too old, or they are forbidden, as in many containers.
    """

    def __init__(self) -> None:
        params = (ctypes.c_uint32 * _PARAMS_WORDS)()
        params[_FLAGS] = _SETUP_FLAGS
        self._descriptor = _system_call(_SETUP, ENTRIES, params)
        try:
            size = max(params[_ORDER] + 4 * ENTRIES, params[_RESULTS_AT] + _RESULT_SIZE * _RESULTS)
            rings = memoryview(mmap.mmap(self._descriptor, size))
            sends = memoryview(mmap.mmap(self._descriptor, _SEND.size * ENTRIES, offset=_SENDS_OFFSET))
        except BaseException:
            self.close()
            raise

        def number(at: int) -> memoryview[int]:
            return rings[params[at] : params[at] + 4].cast("I")

        self._head, self._tail = number(_HEAD), number(_TAIL)
        """How many sends the kernel has taken, and how many it may take."""
        self._results_head, self._results_tail = number(_RESULTS_HEAD), number(_RESULTS_TAIL)
        """How many results have been read, and how many there have been."""
        rings[params[_ORDER] : params[_ORDER] + 4 * ENTRIES] = memoryview(array("I", range(ENTRIES))).cast(
            "B"
        )
        for place in range(ENTRIES):
            _SEND.pack_into(sends, _SEND.size * place, _OPCODE, 0, -1, 0, 0, _MESSAGE_FLAGS, place)
        self._sockets = sends.cast("i")[1::16]
        self._addresses = sends.cast("Q")[2::8]
        self._sizes = sends.cast("I")[6::16]
        results = rings[params[_RESULTS_AT] :][: _RESULT_SIZE * _RESULTS]
        self._places = results.cast("Q")[::2]
        self._results = results.cast("i")[2::4]

    def send(self, sockets: array[int], frames: bytes) -> list[tuple[int, int]]:
        """Send the same bytes to sockets, and return the places of those that have not taken all of them.

        With each comes how many bytes it has taken, or the error as a negative number.

        Args:
            sockets: descriptors, `ENTRIES` at the most; one that is negative is an error of its own, ``EBADF``.
            frames: the bytes.
        """
        count, size = len(sockets), len(frames)
        first = self._tail[0] % ENTRIES
        before_end = min(count, ENTRIES - first)
        self._sockets[first : first + before_end] = memoryview(sockets[:before_end])
        self._sockets[: count - before_end] = memoryview(sockets[before_end:])
        self._addresses[:] = memoryview(
            array("Q", [ctypes.cast(ctypes.c_char_p(frames), ctypes.c_void_p).value or 0]) * ENTRIES
        )
        self._sizes[:] = memoryview(array("I", [size]) * ENTRIES)
        self._tail[0] = (self._tail[0] + count) & 0xFFFFFFFF
        with suppress(OSError):  # it has no memory for all of them
            _system_call(_ENTER, self._descriptor, count, count, _GET_EVENTS, None, 0)
        self._tail[0] = self._head[0]  # what it has not taken it must not take later
        results = self._take(self._results)
        if results.count(size) == count:
            self._results_head[0] = self._results_tail[0]
            return []
        taken = dict(zip(self._take(self._places), results, strict=True))
        self._results_head[0] = self._results_tail[0]
        outcomes = [taken.get((first + place) % ENTRIES, -errno.EAGAIN) for place in range(count)]
        return [(place, outcome) for place, outcome in enumerate(outcomes) if outcome != size]

    def _take(self, column: memoryview[int]) -> list[int]:
        """Return a column of the results that have not been read."""
        first = self._results_head[0] % _RESULTS
        count = (self._results_tail[0] - self._results_head[0]) & 0xFFFFFFFF
        before_end = min(count, _RESULTS - first)
        return column[first : first + before_end].tolist() + column[: count - before_end].tolist()

    def close(self) -> None:
        """Give the ring back to the kernel; it is not used any more."""
        os.close(self._descriptor)
