"""What this package uses although a library or program keeps it private: one small function for each detail.

Where there is a public way, it is used instead. The rest is here and nowhere else, so that a new version is checked
in one place: a test names each detail that is gone or means something else.

Only the standard library is imported here: the commands, which must start fast, load this module too.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Coroutine, Sequence

    from tornado import httputil, web

Handler = TypeVar("Handler", bound="type[web.RequestHandler]")

ACCESS_LINE = "_log"
"""The method of `tornado.web.RequestHandler` with which ``finish`` writes Tornado's own access line."""

CALLER_FILE = "_srcfile"
"""The variable of `logging` without which it does not look up the caller of each record."""


def without_access_line(handler: Handler) -> Handler:
    """Keep Tornado from writing an access line for a class of handlers, which writes one of its own.

    The application's setting ``log_function`` does the same publicly, but an application of others may not have it.
    """
    setattr(handler, ACCESS_LINE, _write_nothing)
    return handler


def _write_nothing(handler: web.RequestHandler) -> None:
    """Take the place of `ACCESS_LINE`."""


def drop_output_transforms(handler: web.RequestHandler) -> None:
    """Have a response written as it is, although the application compresses responses (``compress_response``)."""
    handler._transforms = []


def begin_response(handler: web.RequestHandler, headers: httputil.HTTPHeaders) -> None:
    """Begin a handler's response, as `RequestHandler.clear` does, with headers that are made in a quicker way."""
    handler._headers = headers
    handler._write_buffer = []
    handler._status_code = 200
    handler._reason = "OK"


def execution(
    handler: web.RequestHandler, body: Future[None], path_arguments: Sequence[bytes]
) -> Coroutine[Any, Any, None]:
    """Return the coroutine that Tornado makes a task of: it calls ``prepare``, waits for the body, calls the method.

    Args:
        handler: one that takes its body in pieces.
        body: is done once the handler has all of its body.
        path_arguments: the method's.
    """
    handler.request._body_future = body
    transforms = [transform(handler.request) for transform in handler.application.transforms]
    return handler._execute(transforms, *path_arguments)


def free_cut_off(handler: web.RequestHandler) -> bool:
    """Break the cycles of a request whose client left within its body, which Tornado breaks for finished ones alone.

    Returns:
        Whether the client left within the body.

    The request holds the error that its body ended with, whose traceback holds the handler, and this the request.
    """
    if handler.ui is not None:  # it is None once the response is finished
        handler.ui.clear()
    body = handler.request._body_future
    if body.done() and (error := body.exception()) is not None:
        error.__traceback__ = None
        return True
    return False


def skip_caller_lookup() -> None:
    """Keep `logging` from looking up file and line of the caller for each record (logging HOWTO, "Optimization")."""
    setattr(logging, CALLER_FILE, None)


def bare_socket(descriptor: int) -> socket.SocketType:
    """Return a TCP socket as C has it: `socket.socket` adds a dictionary and more, for each of thousands of streams.

    The name is public, that it is the C type is not.
    """
    return socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)


def queued_job(listing: str, unit: str) -> str | None:
    """Return the type of the job that systemd has queued for a unit, such as ``stop``, or None.

    Args:
        listing: what ``systemctl list-jobs --no-legend --plain --full`` prints; its columns (number, unit, type,
            state) are meant for people, but no other answer of ``systemctl`` tells a stop from a restart.
        unit: with its suffix.
    """
    rows = map(str.split, listing.splitlines())
    return next((row[2] for row in rows if len(row) > 2 and row[1] == unit), None)
