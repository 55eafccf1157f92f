"""What a token grants: patterns, channels of one's own, and stream tokens made from access tokens."""

from __future__ import annotations

import time

import pytest

from tests.support.house import House, assert_refused, bearer, claims_of, command, mint

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet")


@pytest.mark.parametrize(
    ("pattern", "channel", "matches"),
    [
        ("dashboard", "dashboard", True),
        ("dashboard", "alerts", False),
        ("dash", "dashboard", False),
        ("dashboardx", "dashboard", False),
        ("*", "dashboard", True),
        ("*", "desk.a", False),
        ("**", "dashboard", True),
        ("**", "desk.a.b.c", True),
        ("desk.*", "desk.a", True),
        ("desk.*", "desk.a.b", False),
        ("desk.*", "dashboard", False),
        ("desk.*", "user.a", False),
        ("desk.*.c", "desk.b.c", True),
        ("desk.*.c", "desk.b.d", False),
        ("desk.*.c", "desk.a.b.c", False),
        ("*.a", "desk.a", True),
        ("*.*", "desk.a", True),
        ("*.*", "dashboard", False),
        ("desk.**", "desk.a", True),
        ("desk.**", "desk.a.b.c", True),
        ("desk.**", "user.desk.a", False),
        ("desk.*.**", "desk.a.b", True),
        ("desk.a", "desk.a.b", False),
        ("desk.a.b", "desk.a", False),
        ("desk.a", "desk.b", False),
        ("desk", "desk.a", False),
        ("desk_a", "desk.a", False),
        ("des", "desk.a", False),
        ("d*", "dashboard", False),
        ("desk.a*", "desk.ab", False),
        ("desk.**.b", "desk.a.b", False),
        ("**.a", "desk.a", False),
        ("***", "dashboard", False),
        ("desk.?", "desk.a", False),
        ("desk..", "desk.a", False),
        ("[a-z]*", "dashboard", False),
        (".*", "dashboard", False),
        ("DASHBOARD", "dashboard", False),
        ("", "dashboard", False),
        ("dashboard\n", "dashboard", False),
        ("dashboard,alerts", "alerts", False),
        ("user.{sub}.**", "user.forger.x", False),
        ("%", "dashboard", False),
    ],
)
def test_a_pattern_grants_what_it_matches_and_no_more(
    house: House, pattern: str, channel: str, matches: bool
) -> None:
    grants = {"subscribe": [pattern], "publish": [pattern], "admin": False}
    streamed = house.open(channel, mint(house.key, "stream", sub="no.body", sse=grants)).status_code
    published = house.publish(channel, mint(house.key, sub="no.body", sse=grants)).status_code
    # A pattern that is none may spoil its token (401) instead of granting nothing (403).
    assert streamed in ((200,) if matches else (401, 403))
    assert published in ((201,) if matches else (401, 403))


def test_one_channel_beyond_the_grant_refuses_the_whole_stream(house: House) -> None:
    grants = {"subscribe": ["dashboard", "desk.*"], "publish": [], "admin": False}
    token = mint(house.key, "stream", sse=grants)
    assert house.open("dashboard,desk.a", token).status_code == 200
    assert_refused(house.open("dashboard,desk.a,alerts", token), 403)


def test_the_grants_to_subscribe_and_to_publish_are_two(house: House) -> None:
    token = mint(house.key, sse={"subscribe": ["dashboard"], "publish": ["alerts"], "admin": False})
    assert_refused(house.publish("dashboard", token), 403)
    assert house.publish("alerts", token).status_code == 201
    assert house.history(token).status_code == 200
    answer = house.http.get("/api/v1/sse/alerts/history", headers=bearer(token))
    assert_refused(answer, 403)


def test_administration_gives_no_channels(house: House) -> None:
    grants = {"subscribe": [], "publish": [], "admin": True}
    assert_refused(house.publish("dashboard", mint(house.key, sse=grants)), 403)
    assert_refused(house.open("dashboard", mint(house.key, "stream", sse=grants)), 403)


# Own channels


def test_everybody_who_logs_in_has_their_own_channels_to_read_and_only_those(house: House) -> None:
    tokens = house.tokens("ann")
    for channel in ("user.ann.jobs", "user.ann.jobs.7"):
        assert house.open(channel, tokens["stream_token"]).status_code == 200
        assert_refused(house.publish(channel, tokens["access_token"]), 403)
    for channel in ("user.bob.jobs", "user.ann2.jobs", "user.an.jobs", "user.bob.ann", "user.ann-x.a"):
        assert_refused(house.open(channel, tokens["stream_token"]), 403)


@pytest.mark.parametrize("name", ["a.b", "**", "Ann", "{sub}", "a/b"], ids=ascii)
def test_a_user_whose_name_is_no_segment_owns_no_channels_or_is_refused(house: House, name: str) -> None:
    done = command(house, "user", "add", name, "--password-stdin", input="dotted secret\n")
    if done.returncode == 0:
        tokens = house.login(name, "dotted secret").json()
        assert not [p for p in claims_of(tokens["stream_token"])["sse"]["subscribe"] if p.startswith("user")]
        for channel in ("user.a.b", "user.a.b.c", "user.x.y", "user.ann.jobs", "user.a.x"):
            assert_refused(house.open(channel, tokens["stream_token"]), 403)
    else:
        assert len(done.stderr.splitlines()) == 1, done.stderr


# Stream tokens from an access token


def test_a_stream_token_is_narrowed_to_the_channels_asked_for(house: House) -> None:
    tokens = house.tokens("ann")
    answer = house.http.post(
        "/api/v1/auth/stream-token",
        json={"channels": ["dashboard", "desk.a"]},
        headers=bearer(tokens["access_token"]),
    )
    assert answer.status_code == 200
    narrow = answer.json()["stream_token"]
    assert house.open("dashboard,desk.a", narrow).status_code == 200
    for channel in ("desk.b", "user.ann.jobs", "alerts", "dashboard,desk.b"):
        assert_refused(house.open(channel, narrow), 403)
    claims, whole = claims_of(narrow), claims_of(tokens["access_token"])
    assert (claims["sub"], claims["sid"]) == (whole["sub"], whole["sid"])
    assert claims["jti"] != whole["jti"]
    assert claims["sse"]["publish"] == []
    assert claims["sse"]["admin"] is False
    assert claims["exp"] <= time.time() + 600


@pytest.mark.parametrize(
    "channels",
    [
        ["alerts"],
        ["dashboard", "alerts"],
        ["*"],
        ["**"],
        ["user.**"],
        ["user.*.jobs"],
        ["desk.**"],
        ["user.bob.jobs"],
    ],
    ids=ascii,
)
def test_a_stream_token_is_never_wider_than_the_access_token(house: House, channels: list[str]) -> None:
    token = house.tokens("ann")["access_token"]
    answer = house.http.post("/api/v1/auth/stream-token", json={"channels": channels}, headers=bearer(token))
    if answer.status_code != 403:
        assert_refused(answer, 422 if answer.status_code == 422 else 400)


@pytest.mark.parametrize(
    "channels",
    [
        None,
        "dashboard",
        {},
        1,
        [1],
        [None],
        ["Bad"],
        ["a..b"],
        [""],
        ["dashboard\n"],
        [["dashboard"]],
        ["a"] * 10_000,
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_malformed_list_of_channels_makes_no_token(house: House, channels: object) -> None:
    token = house.tokens("ann")["access_token"]
    answer = house.http.post("/api/v1/auth/stream-token", json={"channels": channels}, headers=bearer(token))
    assert answer.status_code in (400, 403, 422), answer.text
    assert set(answer.json()) == {"error"}


def test_no_channels_make_a_token_for_none(house: House) -> None:
    token = house.tokens("ann")["access_token"]
    answer = house.http.post("/api/v1/auth/stream-token", json={"channels": []}, headers=bearer(token))
    if answer.status_code == 200:
        assert_refused(house.open("dashboard", answer.json()["stream_token"]), 403)
    else:
        assert answer.status_code in (400, 422)
