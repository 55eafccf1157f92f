"""Standard input, output and error: there from the start, and no traceback where they cannot be written."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def open_closed_streams() -> None:
    """Open /dev/null on each of the descriptors 0 to 2 that is closed.

    Else the next file or socket that is opened gets its number, and what is printed goes there. It comes before
    anything else is opened.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
            os.set_inheritable(opened, True)
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, closefd=False)  # noqa: SIM115 - for the life of the process
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def complain(text: str) -> None:
    """Print a line for the user on standard error, if that can be written."""
    with suppress(OSError):
        print(f"sse-app: {text}", file=sys.stderr, flush=True)


class Output:
    """What a command has printed, and whether that could be written."""

    def __init__(self) -> None:
        self.failure: OSError | None = None
        """Why standard output took no more."""

    def finish(self) -> None:
        """Write out what has been printed, and tell the user if that fails, unless its reader has closed the pipe.

        What cannot be written is thrown away, for the interpreter would try again at its end, and print a traceback.
        """
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                with suppress(OSError):
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, stream.fileno())
                    os.close(nowhere)
                    stream.flush()
        if self.failure is not None and not isinstance(self.failure, BrokenPipeError):
            complain(f"cannot write the output: {self.failure.strerror}")


class _StandardOutput(io.FileIO):
    """Standard output that keeps the error of a failed write, which a library may pass over."""

    def __init__(self, output: Output) -> None:
        super().__init__(1, "w", closefd=False)
        self._output = output

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self._output.failure = error
            raise


@contextmanager
def watched_output() -> Iterator[Output]:
    """Find out whether what is printed can be written."""
    output = Output()
    original = sys.stdout
    if original is not sys.__stdout__ or not isinstance(original, io.TextIOWrapper):  # in tests for instance
        yield output
        return
    original.flush()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_StandardOutput(output)),
        encoding=original.encoding,
        errors=original.errors,
        line_buffering=original.line_buffering or original.write_through,
    )
    try:
        yield output
    finally:
        sys.stdout = original
