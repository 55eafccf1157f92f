"""Channels in the path that are none, too long, too many, or escape it."""

from __future__ import annotations

import pytest

from tests.support.hostility import Target, assert_refused

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet_and_the_server_alive")

BAD_CHANNELS = [
    "Dashboard",
    "DASHBOARD",
    "dashboard%0a",
    "%0adashboard",
    "dash%0aboard",
    "dash%0d%0aX-Evil:%201",
    "dashboard%00",
    "%00",
    "dashboard%20",
    "%20dashboard",
    "dash+board",
    "dash%2fboard",
    "..%2f..%2fetc%2fpasswd",
    "..",
    ".",
    ".dashboard",
    "dashboard.",
    "user..ann",
    "***",
    "user*",
    "us*r.ann",
    "user.***",
    "user.**.ann",
    "**.ann",
    "user..*",
    "%2a%2a%2a",
    "*%00",
    "*%0a",
    "*,",
    "*a",
    "%2aa",
    "%252a",
    "a.**.b",
    "**.**",
    "*%2f*",
    "*;a",
    "%ef%bc%8a",
    "user.{sub}.**",
    "status,**",
    "*" + ".*" * 128,
    "%ff",
    "dashboard%ff",
    "%c3%28",
    "%ed%a0%80",
    "d%c3%a9sk",
    "%d9%a3",
    "%ef%bc%a1",
    "%",
    "%zz",
    "dashboard%",
    "a" * 65,
    "user." + "a" * 65,
    "dashboard,",
    ",dashboard",
    ",",
    "dashboard,,alerts",
    "dashboard,%20alerts",
    "dashboard,Alerts",
    "{sub}",
    "user.{sub}",
    "%3cscript%3e",
    "'%20or%201=1--",
    "$(reboot)",
    "dashboard%e2%80%a8",
    "dashboard%7f",
    "x" * 20_000,
]


@pytest.mark.parametrize("channel", BAD_CHANNELS, ids=lambda name: name[:40])
def test_a_malformed_channel_is_400_for_streams_publishers_and_history(target: Target, channel: str) -> None:
    assert_refused(target.open(channel), 400)
    assert_refused(target.publish(channel, {"event": "e", "data": {}}), 400)
    assert_refused(target.history(channel), 400)


@pytest.mark.parametrize("pattern", ["*", "**", "user.*", "user.**", "%2a%2a", "user.%2A", "user.*.**"])
def test_a_pattern_is_400_for_publishers_and_none_for_streams_and_history(
    target: Target, pattern: str
) -> None:
    assert_refused(target.publish(pattern, {"event": "e", "data": {}}), 400)
    assert_refused(target.publish(f"dashboard,{pattern}", {"event": "e", "data": {}}), 400)
    assert target.open(pattern).status == 200
    assert target.open(f"dashboard,{pattern}").status == 200
    assert target.history(pattern).status == 200


@pytest.mark.parametrize("pattern", ["sse_app.**", "sse_app.*", "sse_app.presence.**", "sse_app.*.alerts"])
def test_a_pattern_of_the_servers_own_channels_is_403_with_a_token_for_all(
    target: Target, pattern: str
) -> None:
    assert_refused(target.open(pattern), 403)
    assert_refused(target.open(f"**,{pattern}"), 403)
    assert_refused(target.history(pattern), 403)
    assert_refused(target.publish(pattern, {"event": "e", "data": {}}), 400)


def test_as_many_of_the_longest_patterns_as_allowed_bring_each_event_once(target: Target) -> None:
    longest = ["**", *(f"user{'.*' * count}.**" for count in range(94, 125))]
    deepest = "user" + ".a" * 125
    assert len(longest) == 32
    with target.stream(",".join(longest)) as stream:
        assert stream.next("connected").json()["channels"] == longest
        for number in range(3):
            assert target.publish(deepest, {"event": "e", "data": {"n": number}}).status == 201
        assert target.publish("dashboard", {"event": "last", "data": {}}).status == 201
        received = [event for event in stream.events_until("last") if event.type != "ping"]
        assert [event.json()["n"] for event in received] == [0, 1, 2]
    assert_refused(target.open(",".join([*longest, "user.*"])), 400)


@pytest.mark.parametrize("raw", [b"dash\xffboard", b"d\xc3\xa9sk", b"dashboard\x80", b"\xed\xa0\x80"])
def test_a_channel_in_bytes_that_belong_escaped_is_400(target: Target, raw: bytes) -> None:
    path = b"/api/v1/sse/" + raw
    assert target.get(path + b"?token=" + target.stream_token.encode()).status == 400


def test_a_channel_of_the_longest_segments_is_none_the_worse_for_it(target: Target) -> None:
    assert target.open("user." + "a" * 64 + ".-_9").status == 200


def test_a_channel_of_very_many_segments_is_answered_like_any_other(target: Target) -> None:
    assert target.open("user" + ".a" * 5_000).status in (200, 400)


def test_more_channels_than_allowed_are_400(target: Target) -> None:
    names = [f"user.n{number}" for number in range(33)]
    assert target.open(",".join(names[:32])).status == 200
    assert_refused(target.open(",".join(names)), 400)
    assert_refused(target.open(",".join(names * 100)), 400)


def test_a_channel_named_twice_is_not_delivered_twice(target: Target) -> None:
    with target.stream("user.twice,user.twice") as stream:
        if stream.status == 200:
            assert stream.next().json()["channels"] == ["user.twice"]
            for number in range(3):
                assert target.publish("user.twice", {"event": "e", "data": {"n": number}}).status == 201
            assert [stream.next("e").json()["n"] for _ in range(3)] == [0, 1, 2]
        else:
            assert stream.status == 400


def test_status_is_no_channel(target: Target) -> None:
    assert_refused(target.open("dashboard,status"), 400, 404)
    assert_refused(target.publish("status", {"event": "e", "data": {}}), 405)
    assert_refused(target.history("status"), 400, 404)
    batch = {"events": [{"channel": "status", "event": "e", "data": {}}]}
    assert_refused(target.post("/api/v1/sse", batch), 400, 404, 422)


def test_publishing_to_several_channels_in_one_path_is_400(target: Target) -> None:
    assert_refused(target.publish("dashboard,alerts", {"event": "e", "data": {}}), 400)
    assert_refused(target.history("dashboard,alerts"), 400)


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "/api/v1/sse/dashboard/nope",
        "/api/v1/sse/dashboard/history/more",
        "/api/v1/sse//",
        "/api/v2/sse/dashboard",
        "/api/v1",
        "/%ff",
        "/%00",
        "/%0d%0aX-Evil:%201",
        "//evil.example/%2e%2e",
        "/..%2f..%2f..%2fetc/passwd",
        "/../../../../etc/passwd",
        "/static/../../../../etc/passwd",
        "/static/..%2f..%2f..%2fetc%2fpasswd",
        "/static/%00",
        "/static/%ff",
        "/static/",
        "/api/v1/auth/nope",
    ],
)
def test_a_path_that_leads_nowhere_is_a_json_error(target: Target, path: str) -> None:
    answer = target.get(path)
    assert_refused(answer, 400, 403, 404)
    assert b"root:" not in answer.body
    assert "x-evil" not in answer.headers
