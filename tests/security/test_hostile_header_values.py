"""Every header that anything here reads, with values that nothing can read: no 5xx, and no traceback."""

from __future__ import annotations

import itertools
import re

import pytest

from tests.support.hostility import Target, request

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet_and_the_server_alive")

HEADERS = (
    *("Accept", "Accept-Encoding", "Accept-Language", "Authorization", "Connection", "Content-Encoding"),
    *(
        "Content-Length",
        "Content-Type",
        "Cookie",
        "Expect",
        "Forwarded",
        "Host",
        "Idempotency-Key",
        "If-Match",
    ),
    *("If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Keep-Alive", "Last-Event-ID"),
    *("Origin", "Range", "Referer", "Sec-Fetch-Site", "TE", "Trailer", "Transfer-Encoding", "Upgrade"),
    *(
        "User-Agent",
        "Via",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Real-IP",
        "X-Scheme",
    ),
    *("Access-Control-Request-Headers", "Access-Control-Request-Method", "Sec-WebSocket-Key", "X-Xsrftoken"),
)
MANY = b"9" * 5_000
VALUES = (
    *(b"", b" ", b"[", b"]", b"[]", b"[::1", b"[::1]:" + MANY, b"http://[", b"http://[::1%", b"http://[/a]"),
    *(
        b"a:" + MANY,
        b"a:65536",
        b"a:-1",
        b"http://a:" + MANY,
        b"http://a:x",
        b":",
        b"::",
        b"@",
        b"a@b",
        b"a:b:c",
    ),
    *(
        MANY,
        b"-" + MANY,
        b"bytes=" + MANY + b"-",
        b"bytes=-" + MANY,
        b"bytes=5-1",
        b"bytes=-",
        b"bytes=0-0,1-1",
    ),
    *(
        b"Wed, 99 Foo 99999 99:99:99 GMT",
        b"Mon, 31 Feb 2020 25:61:61 GMT",
        b"Thu, 01 Jan 99999999 00:00:00 GMT",
    ),
    *(b"Thu, 01 Jan 1970 00:00:00 +9999999999", b"Sun, 06 Nov 0000 08:49:37 GMT", b"1e999", b"NaN", b"0x1"),
    *(
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xed\xb0\x80",
        b"\xc0\x80",
        "\u0663".encode(),
        "\u2100".encode(),
        b"\x9b",
    ),
    *(
        b"%",
        b"%zz",
        b"%00",
        b'"',
        b'W/"',
        b'"\\',
        b'a="\\777"; b',
        b"=;=;;",
        b"=",
        b";",
        b",",
        b",,,",
        b"a\tb",
    ),
    *(
        b"sse_app_refresh",
        b'sse_app_refresh="\\400\\"',
        b"__Host-sse_app_refresh=\xff",
        b"*",
        b"null",
        b"None",
    ),
    *(b"chunked, chunked", b"100-continue, x", b"close, keep-alive", b"h2c", b"websocket", b'for="['),
    *(
        b'text/plain; charset="',
        b"multipart/form-data; boundary=",
        b"{" * 2_000,
        b"a=" * 3_000,
        b"x" * 30_000,
    ),
)
REQUESTS = (
    ("GET", "/static/style.css"),
    ("POST", "/api/v1/sse/dashboard"),
    ("POST", "/api/v1/auth/refresh"),
    ("HEAD", "/healthz"),
    ("OPTIONS", "/api/v1/auth/me"),
    ("GET", "/metrics"),
    ("POST", "/api/v1/auth/logout"),
    ("GET", "/api/v1/sse/dashboard?token=x"),
)


@pytest.mark.parametrize(
    "all_forms", [False, pytest.param(True, marks=pytest.mark.long)], ids=["in one form each", "in all forms"]
)
@pytest.mark.parametrize("header", HEADERS)
def test_no_value_of_any_header_is_a_5xx(target: Target, header: str, all_forms: bool) -> None:
    asked = itertools.cycle(REQUESTS)
    for number, value in enumerate(VALUES, HEADERS.index(header)):
        forms = [[value], [value, value], [b"x", value]]
        for lines in forms if all_forms else [forms[number % 3]]:  # over the headers each value has each form
            method, path = next(asked)
            fields = [header.encode() + b": " + each for each in lines]
            good = [line for line in ("Connection: close", target.bearer) if not line.startswith(header)]
            body = b'{"event":"e","data":{}}' if method == "POST" else None
            sent = request(method, path, *good, *fields, body=body)
            if header == "Host":
                sent = sent.replace(b"Host: localhost\r\n", b"", 1)
            received = target.raw(sent)
            assert re.match(rb"HTTP/1\.1 (100|[234]\d\d) ", received), (method, path, fields, received[:200])
