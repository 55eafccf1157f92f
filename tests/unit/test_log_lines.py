"""What a log line may hold, whatever is logged by whom: escaped, bounded, without secrets; and how many."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.core.redaction import loggable_path, redact
from sse_app.process.log_format import LINE_BYTES, ConsoleFormatter, JSONFormatter
from sse_app.process.log_limits import BURST, LEFT_OUT, RATE, REPORT_INTERVAL, LogLimits

SECRET = "s3cr3t-Zq9-value"
JWT = f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.{SECRET}"


class Unprintable:
    """An object of a library that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError(SECRET)


def record(message: object = "event", *args: object, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("sse_app.test", logging.INFO, "", 0, message, args, fields.pop("exc_info", None))
    vars(made).update(fields)
    return made


def caught(error: BaseException) -> tuple[Any, Any, Any]:
    try:
        raise error
    except type(error):
        return sys.exc_info()


def lines(made: logging.LogRecord) -> tuple[str, str]:
    return JSONFormatter().format(made), ConsoleFormatter(False).format(made)


HOSTILE = [
    record("request", path="/\x9b31mred"),
    record("request", path="/" + "\x9b" * 30_000),
    record("request", path="/" + "a" * 30_000),
    record("\x1b[2J\r\nfake: %s", "\u202ereversed\u2028next"),
    record("lone \ud800 surrogate", field="\udcff"),
    record("wide", field="\U000e0001" * 600),
    record("number", number=10**5000, large=2**70, infinite=float("inf")),
    record("object", field=Unprintable(), nested={"a": {"b": "\x9b" * 5000}}, bytes=b"\x9b\n"),
    record("fields", **{f"field_{number}": "x" * 500 for number in range(500)}),
    record("names", **{"\x9b\n" * 300: 1}),
    record("error", exc_info=caught(ValueError("\x9b\n12:00:00.000  info     forged " + "é" * 40_000))),
    record("error", exc_info=caught(RuntimeError("\n" * 20_000))),
    record("é" * 5000),
]


@pytest.mark.parametrize("made", HOSTILE, ids=range(len(HOSTILE)))
def test_every_line_is_printable_and_fits_into_a_pipe_at_once(made: logging.LogRecord) -> None:
    as_json, console = lines(made)
    assert as_json.isprintable()
    value = json.loads(as_json)
    texts = [text for name, text in value.items() if name != "exception" and isinstance(text, str)]
    assert all(map(str.isprintable, [*value, *texts]))  # also for those who print what they have parsed
    assert all(map(str.isprintable, value.get("exception", "").split("\n")))
    first, *more = console.split("\n")
    assert first.isprintable()
    assert all(line.isprintable() and line.startswith("    | ") for line in more)
    assert max(len(as_json.encode()), len(console.encode())) <= LINE_BYTES


@pytest.mark.ci
@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers() | st.binary() | st.floats()))
def test_whatever_is_logged_is_one_printable_line(message: str, fields: dict[str, Any]) -> None:
    made = record("%s", message)
    vars(made).update({name: value for name, value in fields.items() if name not in vars(made)})
    as_json, console = lines(made)
    assert as_json.isprintable()
    assert console.isprintable()
    json.loads(as_json)


def test_a_long_traceback_keeps_its_beginning_and_its_end() -> None:
    def deep(level: int) -> None:
        if level == 0:
            raise ValueError("the cause")
        deeper(level - 1)

    def deeper(level: int) -> None:
        deep(level)

    try:
        deep(100)
    except ValueError:
        made = record("uncaught", exc_info=sys.exc_info())
    traceback = json.loads(JSONFormatter().format(made))["exception"]
    assert traceback.startswith("Traceback (most recent call last):")
    assert traceback.endswith("ValueError: the cause")
    assert "characters) ..." in traceback


@pytest.mark.parametrize(
    "text",
    [
        JWT,
        f"GET /api/v1/sse/a?token={SECRET}&x=1",
        f"access_token={SECRET}",
        f"Authorization: Bearer {SECRET}\x01{SECRET}",
        f"authorization: basic {SECRET}",
        f"Invalid header value 'Bearer {SECRET}\\x01{SECRET}'",
        f"Invalid header value 'sse_app_refresh={SECRET}\\x01{SECRET}'",
        f"__Host-sse_app_refresh={SECRET}; Path=/",
        f"Cookie: a=1; other={SECRET}",
        f"{{'Cookie': 'a=1; other={SECRET}'}}",
        f"{{'refresh_token': '{SECRET}', 'password': \"{SECRET}\"}}",
        f"token\x01: eyJhbGci\x02{SECRET}",
        f"https://user:{SECRET}@provider.example/keys",
        f"postgresql://sse:{SECRET}@db/sse",
        "x" * 480 + f" Bearer {SECRET}",
        "x" * 16_380 + f" Bearer {SECRET}",
        f"BEARER {SECRET}",
    ],
)
def test_no_line_holds_a_secret_whoever_logs_it(text: str) -> None:
    for made in (
        record(text),
        record("%r", text),
        record("event", field=text),
        record("event", field=[text]),
        record("event", exc_info=caught(ValueError(text))),
        record("event", exc_info=caught(KeyError(text))),
    ):
        for line in lines(made):
            assert SECRET[:8] not in line, line


@pytest.mark.parametrize(
    "text", ["no bearer token", "token_refused", "a token has at most 8192 characters", "unknown kid"]
)
def test_words_of_our_own_are_no_secrets(text: str) -> None:
    assert redact(text) == text


def test_redaction_takes_no_longer_for_texts_made_for_it() -> None:
    for text in (
        "eyJ",
        "token",
        "://",
        "cookie ",
        "authorization\n",
        '"' + "a" * 40,
        "bearer ",
        "'tokentoken",
    ):
        redact(text * 4000)  # what is quadratic takes minutes


def test_the_path_of_a_request_is_escaped_and_bounded_also_for_the_logs_of_others() -> None:
    assert loggable_path("/a\x9bb") == "/a\\x9bb"
    assert len(loggable_path("/" + "a" * 30_000)) < 300
    assert loggable_path("/a/%65yJhbGciOiJIUzI1NiJ9") == "[redacted]"


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_lines_of_one_kind_have_a_budget_and_what_is_left_out_is_told() -> None:
    clock = Clock()
    limits = LogLimits(clock)
    written = 0

    def flood(seconds: float, made: logging.LogRecord) -> int:
        taken = 0
        for _ in range(int(seconds * 100)):
            clock.now += 0.01
            if limits.admits(made):
                limits.charge(made, 200)
                taken += 200
        return taken

    written = flood(60, record("malformed_request"))
    assert 60 * RATE <= written <= BURST + 60 * RATE + 400
    assert limits.due_in == 0
    (told,) = limits.report()
    assert (told.getMessage(), vars(told)["of"]) == (LEFT_OUT, "malformed_request")
    assert vars(told)["lines"] == 6000 - written / 200
    assert limits.due_in is None
    assert limits.report() == []
    assert flood(0.5, record("another")) == 50 * 200  # other events are not concerned
    flood(1, record("malformed_request"))
    assert limits.due_in == pytest.approx(REPORT_INTERVAL, abs=1.5)


def test_streams_and_what_is_shown_for_debugging_are_not_limited() -> None:
    limits = LogLimits(Clock())
    debug = record("request")
    debug.levelno = logging.DEBUG
    for made in (record("stream_closed"), debug):
        for _ in range(10_000):
            assert limits.admits(made)
            limits.charge(made, 300)


def test_texts_that_clients_choose_do_not_make_kinds_without_end() -> None:
    limits = LogLimits(Clock())
    admitted = 0
    for number in range(5000):
        made = record(f"error in {number}")
        made.name = "library"
        if limits.admits(made):
            limits.charge(made, 200)
            admitted += 1
        ours = record(f"event_{number}")
        if limits.admits(ours):
            limits.charge(ours, 200)
    assert admitted * 200 <= BURST + 200
    assert len(limits._budgets) < 300
