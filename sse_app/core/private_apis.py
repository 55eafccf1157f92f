"""What this package uses although a library keeps it private: one small function for each detail.

Where a library has a public way, that is taken. What is left stands here and nowhere else, so that a new version of a
library is checked in one place: ``tests/test_private_apis.py`` names each detail that has gone or changed. Two more
are beside the only code that knows what they mean: PyJWT's in `sse_app.auth.tokens.jose`.

Nothing is imported here that is not in the standard library: the commands load this module too.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tornado import httputil, web

Handler = TypeVar("Handler", bound="type[web.RequestHandler]")

LOG_METHOD = "_log"
"""`tornado.web.RequestHandler.finish` calls this method to write Tornado's access line."""


def without_access_line(handler: Handler) -> Handler:
    """Keep Tornado from writing an access line for a class of handlers: that line has the query in it, with its token.

    An application's ``log_function`` would do the same publicly, but a handler may be mounted in an application that
    is not ours.
    """
    setattr(handler, LOG_METHOD, _write_nothing)
    return handler


def _write_nothing(handler: web.RequestHandler) -> None:
    """Take the place of `LOG_METHOD`."""


def drop_output_transforms(handler: web.RequestHandler) -> None:
    """Have a response written as it is, although the application compresses responses (``compress_response``)."""
    handler._transforms = []


def replace_response_headers(handler: web.RequestHandler, headers: httputil.HTTPHeaders) -> None:
    """Replace the response headers that a handler keeps after they were sent: they are memory of each open stream."""
    handler._headers = headers


def mark_headers_written(handler: web.RequestHandler) -> None:
    """Tell a handler that the headers of its response were sent already, by another process."""
    handler._headers_written = True


def skip_caller_lookup() -> None:
    """Keep `logging` from looking up file and line of the caller for each record (logging HOWTO, "Optimization")."""
    module: Any = logging
    module._srcfile = None
