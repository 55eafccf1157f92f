"""Bodies that are no JSON, or JSON at the edge of what there is."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable

import pytest

from sse_app.handlers.parsing import hint_of
from tests.support.hostility import MIB, Answer, Target, assert_refused, request
from tests.support.sse_reader import strict_json

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet_and_the_server_alive")

NOT_JSON = [
    b"",
    b" ",
    b"{",
    b"}",
    b"nonsense",
    b"event=e&data=1",
    b"{'event': 'e', 'data': {}}",
    b'{"event":"e","data":{}} x',
    b'{"event":"e","data":{}}{"event":"e","data":{}}',
    b'{"event":"e","data":{},}',
    b'{"event":"e","data":{"a":NaN}}',
    b'{"event":"e","data":{"a":Infinity}}',
    b'{"event":"e","data":{"a":-Infinity}}',
    b'{"event":"e","data":{"a":01}}',
    b'{"event":"e","data":{"a":.5}}',
    b'{"event":"e","data":{"a":+1}}',
    b'{"event":"e","data":{"a":0x10}}',
    b'{"event":"e","data":{"a":1_0}}',
    b'{"event":"e","data":{"a":"\n"}}',
    b'{"event":"e","data":{"a":"\x00"}}',
    b'{"event":"e","data":{"a":"\\x41"}}',
    b'{"event":"e","data":{"a":"\\ud800"}}',
    b'{"event":"e","data":{"a":"\\udc00\\ud800"}}',
    b'{"event":"e","data":{"\\ud800":1}}',
    b'{"event":"\\ud800","data":{}}',
    b'{"\\ud800":1,"event":"e","data":{}}',
    b'{"event":"e","data":{"a":"\xff"}}',
    b'{"event":"e","data":{"a":"\xed\xa0\x80"}}',
    b'{"event":"e","data":{"a":"\xc0\x80"}}',
    b'{"event":"e\xff","data":{}}',
    b'{"event":"e","data":{}}\x00',
    b"\x00",
    b'{"event":"e","data":{}} // comment',
    '{"event":"e","data":{}}'.encode("utf-16"),
    '{"event":"e","data":{}}'.encode("utf-16-le"),
    '{"event":"e","data":{}}'.encode("utf-32"),
    gzip.compress(b'{"event":"e","data":{}}', mtime=0),
    b"[" * 100_000,
    b'{"event":"e","data":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    b'{"event":"e","data":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    b'{"event":' + b"[" * 5_000 + b"]" * 5_000 + b',"data":{}}',
    b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n",
]


@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[:40]))
def test_a_body_that_is_no_json_is_refused_and_stores_nothing(target: Target, body: bytes) -> None:
    assert_refused(target.publish("user.nojson", body), 400, 415, 422)
    assert_refused(target.post("/api/v1/sse", body), 400, 415, 422)
    small = (413,) if len(body) > 65_536 else (400, 415, 422)
    assert_refused(target.post("/api/v1/auth/login", body, bearer=False), *small)
    if body:  # Without a body this is a request for all that the user may have.
        assert_refused(target.post("/api/v1/auth/stream-token", body), *small)
    assert target.stored("user.nojson") == []


@pytest.mark.parametrize("body", [b"[]", b"[1]", b'"text"', b"1", b"null", b"true", b"1e999", b"{}", b"-0"])
def test_a_body_of_the_wrong_shape_is_refused(target: Target, body: bytes) -> None:
    assert_refused(target.publish("user.nojson", body), 400, 422)
    assert_refused(target.post("/api/v1/sse", body), 400, 422)
    assert_refused(target.post("/api/v1/auth/login", body, bearer=False), 400, 422)
    if body != b"{}":
        assert_refused(target.post("/api/v1/auth/stream-token", body), 400, 422)


def test_a_body_with_a_byte_order_mark_is_read_or_refused(target: Target) -> None:
    body = b'\xef\xbb\xbf{"event":"e","data":{}}'
    answer = target.publish("dashboard", body)
    assert answer.status == 201 or assert_refused(answer, 400, 422)


def test_a_post_without_a_body_or_a_length_is_refused(target: Target) -> None:
    for path in ("/api/v1/sse/dashboard", "/api/v1/sse", "/api/v1/auth/login"):
        answer = target.send(request("POST", path, "Connection: close", target.bearer))
        assert_refused(answer, 400, 411, 422)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "text/plain; charset=utf-16",
        "application/json; charset=\x80",
        "/",
        "",
    ],
)
def test_a_strange_content_type_is_no_crash(target: Target, content_type: str) -> None:
    for body in (b"%ff=%ff&&", b"--x\r\n\r\n", b"--x\r\nContent-Disposition: x\r\n\r\n\r\n--x--"):
        header = b"Content-Type: " + content_type.encode("latin-1")
        for path in ("/api/v1/sse/dashboard", "/api/v1/auth/login", "/nope", "/api/v1/sse/status"):
            assert 400 <= target.post(path, body, header).status < 500


def test_a_compressed_body_is_refused_or_understood_but_never_a_bomb(target: Target) -> None:
    small = gzip.compress(b'{"event":"e","data":{}}')
    answer = target.publish("dashboard", small, "Content-Encoding: gzip")
    assert answer.status == 201 or assert_refused(answer, 400, 415, 422)
    bomb = gzip.compress(b'{"event":"e","data":{"a":"' + b"a" * (20 * MIB) + b'"}}')
    assert_refused(target.publish("dashboard", bomb, "Content-Encoding: gzip"), 400, 413, 415, 422)
    for encoding in ("br", "deflate", "identity, gzip", "x" * 100):
        answer = target.publish("dashboard", b"\x00\xff", f"Content-Encoding: {encoding}")
        assert_refused(answer, 400, 415, 422)


def delivered(target: Target, channel: str, publish: Callable[[], Answer]) -> list[str] | None:
    """Return an event's data as it comes live, by replay and as history's text, or None where it is refused."""
    start = target.publish(channel, {"event": "start", "data": {}}).json()["id"]
    with target.stream(channel) as live:
        live.next("connected")
        answer = publish()
        if answer.status != 201:
            assert_refused(answer, 400, 413, 422)
            return None
        texts = [live.next("e").data]
    with target.stream(channel, f"&last_event_id={start}") as replay:
        assert replay.next().type == "connected"
        again = replay.next()
        assert again.type == "e"
        texts.append(again.data)
    history = target.history(channel, f"?after={start}")
    assert history.status == 200, history
    return [*texts, history.body.decode()]


@pytest.mark.parametrize(
    "number",
    [
        "123456789012345678901234567890",
        "-123456789012345678901234567890",
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775809",
        "1" + "0" * 300,
    ],
    ids=lambda number: number[:32],
)
def test_integers_of_any_size_come_through_exactly(target: Target, number: str) -> None:
    body = b'{"event":"e","data":{"n":%s,"m":[{"n":%s}]}}' % (number.encode(), number.encode())
    texts = delivered(target, "user.numbers", lambda: target.publish("user.numbers", body))
    assert texts is not None
    for text in texts[:2]:
        data = strict_json(text)
        assert (data["n"], data["m"]) == (int(number), [{"n": int(number)}])
    assert strict_json(texts[2])["events"][0]["data"]["n"] == int(number)


@pytest.mark.parametrize(
    "number",
    ["0.1", "-0.0", "1e5", "1E-7", "5e-324", "1.7976931348623157e308", "0.30000000000000004", "1e-400"],
)
def test_floating_point_numbers_come_through_exactly(target: Target, number: str) -> None:
    body = b'{"event":"e","data":{"n":%s}}' % number.encode()
    texts = delivered(target, "user.numbers", lambda: target.publish("user.numbers", body))
    assert texts is not None
    for text in texts[:2]:
        assert repr(float(strict_json(text)["n"])) == repr(float(number))


@pytest.mark.parametrize(
    "number",
    ["1e400", "-1e400", "1" * 5_000, "1" + "0" * 400 + ".5", "1e999999999"],
    ids=lambda number: number[:12],
)
def test_numbers_beyond_bounds_are_refused_or_come_through_as_json(target: Target, number: str) -> None:
    body = b'{"event":"e","data":{"n":%s}}' % number.encode()
    texts = delivered(target, "user.numbers", lambda: target.publish("user.numbers", body))
    for text in texts or ():
        assert "Infinity" not in text
        assert "NaN" not in text
        assert "null" not in text
        if number.isdigit():
            assert number in text


@pytest.mark.parametrize("levels", [100, 250, 300, 900, 1_100, 2_000])
@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
def test_deep_nesting_comes_through_or_is_refused(target: Target, levels: int, left: str, right: str) -> None:
    nested = left * levels + "1" + right * levels
    body = f'{{"event":"e","data":{{"deep":{nested}}}}}'.encode()
    texts = delivered(target, "user.deep", lambda: target.publish("user.deep", body))
    for text in texts or ():
        assert nested in text.replace(" ", "")
    if levels <= 100:
        assert texts is not None


@pytest.mark.parametrize("levels", [900, 960, 990, 1_010, 1_020])
@pytest.mark.parametrize("path", ["/api/v1/sse/user.deep", "/api/v1/auth/login"])
def test_a_long_number_in_deep_nesting_is_no_error_of_the_server(
    target: Target, levels: int, path: str
) -> None:
    """Such numbers are read by the standard library, which goes less deep than what has read the text before."""
    nested = "[" * levels + "1" * 21 + "]" * levels
    answer = target.post(path, f'{{"event":"e","data":{nested},"username":{nested}}}'.encode())
    if answer.status != 201:
        assert_refused(answer, 400, 422)


def test_what_a_body_seems_to_be_is_found_out_at_once() -> None:
    """An expression with two runs of blanks would try each way to divide them: 11 s of the event loop for 64 KiB."""
    begun = time.thread_time()
    for body in (b" " * 65_535 + b"x", b"[" + b" " * 65_535 + b"x", b"{" + b" " * 65_535 + b'"'):
        assert hint_of(body, "application/json") == ""
    assert time.thread_time() - begun < 2


def test_a_batch_with_deep_nesting_is_refused_as_a_whole_or_comes_through(target: Target) -> None:
    for levels in (300, 2_000):
        nested = "[" * levels + "]" * levels
        body = (
            f'{{"events":[{{"channel":"user.deepbatch","event":"e","data":{{}}}},'
            f'{{"channel":"user.deepbatch","event":"e","data":{{"deep":{nested}}}}}]}}'
        ).encode()
        before = len(target.stored("user.deepbatch"))
        answer = target.post("/api/v1/sse", body)
        assert len(target.stored("user.deepbatch")) - before == (2 if answer.status == 201 else 0)
        if answer.status != 201:
            assert_refused(answer, 400, 422)


@pytest.mark.parametrize(
    "data",
    [
        b'{"channel":"dashboard"}',
        b'{"channel":"dashboard","channel":"alerts"}',
        b'{"ch\\u0061nnel":"dashboard"}',
        b'{"channel":null}',
        b'{"channel":{"channel":"dashboard"}}',
        b'{"a":1,"channel":"dashboard","b":2}',
    ],
)
def test_an_event_cannot_pose_as_one_of_another_channel(target: Target, data: bytes) -> None:
    body = b'{"event":"e","data":%s}' % data
    texts = delivered(target, "user.pose", lambda: target.publish("user.pose", body))
    for text in texts or ():
        document = strict_json(text)
        if "events" in document:
            document = document["events"][0]
            assert document["channel"] == "user.pose"
            document = document["data"]
        assert document["channel"] == "user.pose"


def test_a_body_cannot_choose_its_own_id_or_channel(target: Target) -> None:
    body = {"event": "e", "data": {}, "id": "evil-1", "channel": "dashboard"}
    answer = target.publish("user.fields", body)
    if answer.status == 201:
        assert answer.json()["channel"] == "user.fields"
        assert answer.json()["id"] != "evil-1"
        assert target.stored("user.fields")[-1]["channel"] == "user.fields"
    else:
        assert_refused(answer, 422)


def test_keys_given_twice_are_refused_or_the_last_one_counts(target: Target) -> None:
    body = b'{"event":"first","event":"e","data":{"a":1},"data":{"b":1,"b":2}}'
    texts = delivered(target, "user.twins", lambda: target.publish("user.twins", body))
    for text in (texts or ())[:2]:
        data = strict_json(text)
        assert (data["b"], "a" in data) == (2, False)
    hidden = b'{"event":"connected","event":"e","data":{}}'
    answer = target.publish("user.twins", hidden)
    assert answer.status in (201, 400, 422)
    turned = b'{"event":"e","event":"connected","data":{}}'
    assert_refused(target.publish("user.twins", turned), 400, 422)


@pytest.mark.parametrize(
    "data",
    [
        {"text": "a\n\nevent: evil\ndata: x\n\n"},
        {"text": "a\r\rid: evil\r\r"},
        {"text": "a\r\n\r\nretry: 0\r\n\r\n"},
        {"text": "\u0000\u2028\u2029\u0085\ufeff\x0b\x0c\x1c"},
        {"text": "😀🏴‍☠️ ﷽ \U0010ffff"},
        {"": 1, "__proto__": {"x": 1}, "\n": 2, "data: ": 3},
        {"timestamp": 5},
        {"timestamp": None},
        {"timestamp": "yesterday\n\ndata: evil"},
    ],
    ids=lambda data: ascii(data)[:40],
)
def test_no_text_breaks_out_of_its_frame(target: Target, data: dict[str, object]) -> None:
    for raw in (json.dumps(data).encode(), json.dumps(data, ensure_ascii=False).encode()):
        body = b'{"event":"e","data":%s}' % raw
        texts = delivered(target, "user.text", lambda body=body: target.publish("user.text", body))  # type: ignore[misc]
        assert texts is not None
        for text in texts[:2]:
            document = strict_json(text)
            assert document.pop("channel") == "user.text"
            if "timestamp" not in data:
                assert document.pop("timestamp")
            assert document == data
