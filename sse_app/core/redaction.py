"""Keeps secrets, control characters and endless texts out of log lines."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import unquote

LONGEST_READ = 16 * 1024
"""How many characters of a text are looked at; a secret that begins in what is kept ends within that many."""

PATH_LENGTH = 256
"""How many characters of a request's path are kept."""

_SECRETS = re.compile(
    r"""
    eyJ[^\ "'&;,<>\t\r\n]{5,}                                    # a JWT, whatever is in it
    | (?P<name>
        (?i:token|passwd|password|secret|sse_app_refresh)=       # in a query, a form or a cookie
        | (?i:bearer|basic)[ ](?!token\b)                        # credentials (RFC 9110 §11.4)
      ) [^\ "'&;,\t\r\n]+
    | (?P<quoted>                                                # in JSON, or in a dictionary, perhaps in a string
        ["']\w{0,40}(?i:token|password|secret)\\{0,3}["']\s?:\s?b?\\{0,3}["']
      ) [^"'\r\n]+
    | (?P<header>(?i:authorization|cookie)\b\\{0,3}["']?\s?[:=]\s?b?\\{0,3}["']?) [^"'\r\n]+
    | (?P<scheme>://) [^\s/@"']+ (?=@)                           # user and password in a URL
    """,
    re.VERBOSE,
)
_SIGNS = (
    "eyj",
    "token=",
    "passw",
    "secret",
    "refresh=",
    "bearer ",
    "basic ",
    "token'",
    'token"',
    "cookie",
    "authorization",
    "://",
)


def may_hold_secret(text: str) -> bool:
    """Return whether it is worth a closer look: hardly ever true, and much quicker than the expression."""
    lower = text.lower()
    for sign in _SIGNS:  # noqa: SIM110 - each line of the log comes here: twice as quick as any()
        if sign in lower:
            return True
    return False


def redact(text: str) -> str:
    """Return the text without what looks like a secret: the last line of defence, not the first."""
    return _SECRETS.sub(_redacted, text) if may_hold_secret(text) else text


def _redacted(match: re.Match[str]) -> str:
    return f"{match[match.lastgroup] if match.lastgroup else ''}[redacted]"


def printable(text: str) -> str:
    r"""Return the text with ``\x9b`` and the like in the place of what is not printed, such as control characters."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def loggable(text: str, length: int) -> str:
    """Return the first so many characters of a text, on one line and without secrets."""
    kept = redact(text[:LONGEST_READ])
    if len(kept) > length or len(text) > LONGEST_READ:
        kept = f"{kept[:length]}... ({len(text)} characters)"
    return printable(kept)


def loggable_path(path: str) -> str:
    """Return the path of a request for a log line, or ``[redacted]`` if a token stands in it, even URL-encoded."""
    return (_remembered_path if len(path) <= PATH_LENGTH else _loggable_path)(path)


def _loggable_path(path: str) -> str:
    decoded = unquote(path)
    return loggable(path, PATH_LENGTH) if redact(decoded) == decoded else "[redacted]"


_remembered_path = lru_cache(1024)(_loggable_path)
