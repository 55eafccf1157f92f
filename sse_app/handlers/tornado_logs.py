"""Keeps what clients send out of the lines that Tornado's own HTTP server logs, where the routes are mounted there."""

from __future__ import annotations

import logging
import re

from tornado.httputil import HTTPInputError

from sse_app.core.redaction import loggable

DETAIL_LENGTH = 200
"""How many characters of an error are kept."""

_BEFORE_VALUE = re.compile(r"[\w ,./-]*?(?=\W*$| b?['\"]|:)")


class WithoutValues(logging.Filter):
    """Cuts off the header that Tornado adds to "Malformed HTTP message", which may be a cookie or hold a token."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the line pass, with what is wrong and without the value."""
        if isinstance(record.args, tuple):
            record.args = tuple(
                _cause(arg) if isinstance(arg, HTTPInputError) else arg for arg in record.args
            )
        return True


_FILTER = WithoutValues()


def keep_values_out() -> None:
    """Put the filter in place, once for the process."""
    logging.getLogger("tornado.general").addFilter(_FILTER)


def _cause(error: HTTPInputError) -> str:
    # It looks ahead from each place, so of a long text that would take long.
    match = _BEFORE_VALUE.match(str(error)[:DETAIL_LENGTH])
    return loggable(match[0] if match else type(error).__name__, DETAIL_LENGTH)
