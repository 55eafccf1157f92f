"""Positions and client ids that are malformed, unreadable, or given twice."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest

from sse_app import EventId
from tests.support.hostility import Target, assert_refused

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet_and_the_server_alive")

EVENT_ID = re.compile(r"[A-Za-z0-9]+-[0-9]+")


# Positions


BAD_POSITIONS = [
    "%0a",
    "%00",
    "%0d",
    "%09",
    "%1b",
    "%7f",
    "%01",
    "abc-1%0a",
    "%0aabc-1",
    "abc-1%00",
    "abc-1%0d%0aid:%20evil-1",
    "abc%09-1",
    "%0a%0a%0a%0a",
    "%20%0a%20",
    "a" * 200 + "%0a",
]


@pytest.mark.parametrize("position", BAD_POSITIONS, ids=lambda value: value[:40])
def test_a_position_with_control_characters_is_400(target: Target, position: str) -> None:
    assert_refused(target.open("dashboard", f"&last_event_id={position}"), 400)
    assert_refused(target.history("dashboard", f"?after={position}"), 400)


UNREADABLE_POSITIONS = [
    "abc",
    "-",
    "--",
    "-1",
    "1",
    "0",
    "abc-1",
    "EPOCH-",
    "EPOCH--1",
    "EPOCH-%2b1",
    "EPOCH-%201",
    "%20EPOCH-1",
    "EPOCH-1%20",
    "EPOCH-1_0",
    "EPOCH-1e1",
    "EPOCH-0x1",
    "EPOCH-1.0",
    "EPOCH-%d9%a1",
    "EPOCH-%c2%b2",
    "EPOCH-999999999",
    "EPOCH-9223372036854775807",
    "EPOCH-9223372036854775808",
    "EPOCH-18446744073709551616",
    "EPOCH-99999999999999999999999999999999999999",
    "EPOCH-1-1",
    "EPOCH-nan",
    "EPOCH-1;drop",
    "EPOCH-1:0",
    "null",
    "undefined",
    "a" * 128,
    "a" * 129,
    "a" * 5_000,
    "%c3%a9" * 64,
    "a%c3%a9" + "%c3%a9" * 64,
    "abc-" + "1" * 125,
    "EPOCH-1" + "%20" * 200,
    "%20" * 200 + "EPOCH-1",
    "%20",
    "%e2%80%a8",
    "%f0%9f%98%80-1",
    "'%20OR%201=1",
]


@pytest.mark.parametrize("position", UNREADABLE_POSITIONS, ids=lambda value: value[:40])
def test_a_position_that_cannot_be_continued_brings_a_reset_and_no_silent_gap(
    target: Target, position: str
) -> None:
    made = target.publish("training", {"event": "e", "data": {}}).json()["id"]
    position = position.replace("EPOCH", made.rpartition("-")[0])
    with target.stream("dashboard,training", f"&last_event_id={position}") as stream:
        assert stream.status == 200
        connected = stream.next()
        assert connected.type == "connected"
        assert connected.json()["recovered"] is False
        assert connected.id is not None
        assert EVENT_ID.fullmatch(connected.id), connected
        resets = [stream.next(), stream.next()]
        assert [event.type for event in resets] == ["reset", "reset"]
        assert {event.json()["channel"] for event in resets} == {"dashboard", "training"}
        live = target.publish("training", {"event": "live", "data": {}}).json()["id"]
        event = stream.next()
        assert (event.type, event.id) == ("live", live)
    history = target.history("training", f"?after={position}")
    if (
        EventId.parse(unquote(position, errors="replace")) is None
    ):  # no browser reconnects here: it is a mistake
        assert (history.status, history.json()["error"]["code"]) == (400, "invalid_position")
    else:
        assert (history.status, history.json()["complete"]) == (200, False)


@pytest.mark.parametrize("position", ["%ff", "abc%ff-1", "%c3%28", "%ed%a0%80", "%c2%85"])
def test_a_position_that_is_no_utf_8_is_400_or_a_reset(target: Target, position: str) -> None:
    with target.stream("dashboard", f"&last_event_id={position}") as stream:
        assert stream.status in (200, 400)
        if stream.status == 200:
            assert stream.next().type == "connected"
            assert stream.next().type == "reset"
    assert target.history("dashboard", f"?after={position}").status in (200, 400)


def test_an_empty_position_is_none_at_all(target: Target) -> None:
    target.publish("user.empty", {"event": "old", "data": {}})
    for headers in ((), ("Last-Event-ID:",), ("Last-Event-ID:   ",)):
        with target.stream("user.empty", "&last_event_id=", *headers) as stream:
            assert stream.next().json()["recovered"] is False
            made = target.publish("user.empty", {"event": "new", "data": {}}).json()["id"]
            event = stream.next()
            assert (event.type, event.id) == ("new", made)


def test_the_header_wins_over_the_query_and_an_empty_header_does_not(target: Target) -> None:
    first, second = (target.publish("user.both", {"event": "e", "data": {}}).json()["id"] for _ in range(2))
    with target.stream("user.both", f"&last_event_id={second}", f"Last-Event-ID: {first}") as stream:
        assert stream.next().json()["recovered"] is True
        assert stream.next().id == second
    with target.stream("user.both", "&last_event_id=rubbish", f"Last-Event-ID: {first}") as stream:
        assert stream.next().json()["recovered"] is True
        assert stream.next().id == second
    with target.stream("user.both", f"&last_event_id={first}", "Last-Event-ID:") as stream:
        assert stream.next().json()["recovered"] is True
        assert stream.next().id == second


@pytest.mark.parametrize(
    "value",
    [b"a\x00b", b"a\x01", b"\x7f", b"a\tb", b"\x1b[31m", b"a" * 200 + b"\x1b"],
)
def test_a_position_in_the_header_is_held_to_the_same_rules(target: Target, value: bytes) -> None:
    assert target.open("dashboard", "", b"Last-Event-ID: " + value).status == 400


@pytest.mark.parametrize(
    "value", [b"a" * 129, b"a" * 5_000, "é".encode() * 65, b"EPOCH-1" + b"0" * 130, b"," * 200]
)
def test_a_position_that_is_too_long_for_an_id_brings_a_reset_as_a_browser_would_stop_for_good(
    target: Target, value: bytes
) -> None:
    made = target.publish("dashboard", {"event": "e", "data": {}}).json()["id"]
    header = b"Last-Event-ID: " + value.replace(b"EPOCH", made.rpartition("-")[0].encode())
    with target.stream("dashboard,training", f"&last_event_id={made}", header) as stream:
        assert stream.status == 200
        connected, *resets = (stream.next() for _ in range(3))
        assert (connected.type, connected.json()["recovered"]) == ("connected", False)
        assert [(event.type, event.json()["reason"]) for event in resets] == [
            ("reset", "position_unreadable")
        ] * 2
        assert connected.id is not None
    with target.stream("dashboard", "", f"Last-Event-ID: {connected.id}") as stream:
        assert stream.next().json()["recovered"] is False
        assert stream.next().type == "reset"


@pytest.mark.parametrize("value", [b"\xff\xfe", "é".encode(), b"abc, def", b'"abc"', b"a" * 128])
def test_a_strange_position_in_the_header_is_400_or_a_reset(target: Target, value: bytes) -> None:
    with target.stream("dashboard", "", b"Last-Event-ID: " + value) as stream:
        assert stream.status in (200, 400)
        if stream.status == 200:
            assert stream.next().type == "connected"
            assert stream.next().type == "reset"


def test_two_positions_are_not_silently_one(target: Target) -> None:
    first, second = (target.publish("user.pair", {"event": "e", "data": {}}).json()["id"] for _ in range(2))
    with target.stream("user.pair", "", f"Last-Event-ID: {first}", f"Last-Event-ID: {second}") as stream:
        assert stream.status in (200, 400)
        if stream.status == 200:
            assert stream.next().type == "connected"
            assert stream.next().type == "reset"
    assert target.open("user.pair", f"&last_event_id={first}&last_event_id={second}").status in (200, 400)


# Client ids


@pytest.mark.parametrize(
    "client_id",
    [
        "tab%0a",
        "%0atab",
        "tab%00",
        "%20tab",
        "tab%20",
        "a%20b",
        "a" * 65,
        "a" * 10_000,
        "%ff",
        "t%c3%a9",
        "%d9%a3",
        "a/b",
        "a,b",
        "<b>",
        "tab%0d%0a%0d%0adata:evil",
        "{}",
        "%22",
        "tab%e2%80%a8",
    ],
    ids=lambda value: value[:40],
)
def test_a_malformed_client_id_is_400(target: Target, client_id: str) -> None:
    assert_refused(target.open("dashboard", f"&client_id={client_id}"), 400)


def test_a_client_id_of_every_allowed_character_is_told_back(target: Target) -> None:
    for client_id in ("a", "-._09azAZ", "x" * 64):
        with target.stream("dashboard", f"&client_id={client_id}") as stream:
            assert stream.next().json()["client_id"] == client_id


def test_client_ids_given_twice_are_no_crash(target: Target) -> None:
    assert target.open("dashboard", "&client_id=a&client_id=b").status in (200, 400)


@pytest.mark.parametrize(
    "query", ["&", "&&&", "&%", "&%zz=1", "&%ff=1", "&a=%ff", "&;;", "&a", "&=", "&" + "a=1&" * 2_000]
)
def test_a_strange_query_beside_good_arguments_is_no_crash(target: Target, query: str) -> None:
    assert target.open("dashboard", query).status in (200, 400)
