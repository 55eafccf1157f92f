"""The failures that a stream may meet, and what a client does then: one table for the clients of both languages."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

from tests.support.server_process import ROOT
from tests.support.stream_script import answer_json, status

Row = dict[str, Any]

FAILURES: list[Row] = json.loads((ROOT / "tests/client/failures.json").read_text())
"""Each with ``where`` it happens, what happens there, and what the client does ``then``.

What happens is a ``status`` (with the server's ``code`` and ``retry_after`` seconds where they matter), the reason of
a ``closing`` (with its ``retry`` in milliseconds), or ``what`` in words. ``token`` is ``text`` where the token is one
that stays the same; else it comes from a function. A row whose ``then`` is final has the ``reason`` that the browser's
``onClose`` is given, and what the iteration raises in ``python``.
"""

WHERE = {
    "token": "The token function fails",
    "opening": "A stream is opened",
    "open": "A stream is open",
    "renewal": "A token is renewed",
    "closing": "The server sends `closing`",
}

THEN = {
    "final": "ends",
    "retry": "tries again after the backoff, and after `Retry-After` at the soonest",
    "fresh": "reconnects at once with a fresh token",
    "fresh, then final": "tries once more with a fresh token, and ends if that is refused with 401 too",
    "again": "renews again while the token is valid; the stream stays open",
    "wait": "comes back after that time",
}


def rows(where: str) -> list[Row]:
    """Return the failures that happen there."""
    return [row for row in FAILURES if row["where"] == where]


def answer(row: Row) -> list[bytes | float | None]:
    """Return what a scripted server answers when this happens; nothing closes the connection."""
    if "status" in row:
        headers = [f"Retry-After: {row['retry_after']}"] if "retry_after" in row else []
        if "code" in row:
            return answer_json(row["status"], {"error": {"code": row["code"], "message": "words"}}, *headers)
        return status(row["status"], b"", *headers)
    match row["what"]:
        case "no answer":
            return []
        case "any other error":
            return status(418)
        case "silence":
            return [None]
        case "not an event stream":
            return status(200, b"<h1>Please log in to this network</h1>", "Content-Type: text/html")
    raise AssertionError(row)


def name(row: Row) -> str:
    """Return a failure in some words, as the name of a test."""
    parts = (
        row["where"],
        row.get("status"),
        row.get("code"),
        row.get("closing"),
        row.get("what"),
        row.get("token"),
    )
    words = [str(part) for part in parts if part is not None]
    return " ".join([*words, "with retry"] if "retry" in row else words)


def table() -> str:
    """Return the failures as a table in Markdown; those next to each other with the same end share a line."""
    lines = ["| where | what happens | the client | `onClose` | Python |", "|---|---|---|---|---|"]
    above = ""
    for (where, then, reason, python), rows in groupby(FAILURES, _outcome):
        what = ", ".join(dict.fromkeys(map(_what, rows)))
        raised = f"`{python}`" if python.isalpha() else python
        cells = ["" if where == above else WHERE[where], what, THEN[then], reason and f"`{reason}`", raised]
        lines.append(f"| {' | '.join(cells)} |")
        above = where
    return "\n".join(lines) + "\n"


def _outcome(row: Row) -> tuple[str, str, str, str]:
    return row["where"], row["then"], row.get("reason", ""), row.get("python", "")


def _what(row: Row) -> str:
    closing = row.get("closing")
    if closing and row.get("retry"):
        return "with a `retry`"
    what = str(row.get("status", row.get("what")))
    if closing:
        what = closing if " " in closing else f"`{closing}`"
    if "code" in row:
        what += f" `{row['code']}`"
    return what + (", and the token is a text" if row.get("token") == "text" else "")
