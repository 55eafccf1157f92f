"""Cookies, refreshes and logins: only the right one goes on with a session."""

from __future__ import annotations

import json
import random
import re
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.fuzz.conversation import Manner, converse, request_of
from tests.faults.fuzz.fuzzed import MARKS, Fuzzed
from tests.faults.fuzz.made_up import JSON, manners
from tests.faults.fuzz.servers import PASSWORD, USER

pytestmark = MARKS


def quoted_cookies(value: str) -> st.SearchStrategy[str]:
    """Make up a ``Cookie`` header in which a value may be, by its name or by another one."""
    names = st.sampled_from(
        ["sse_app_refresh", "sse_app_refresh", "__Host-sse_app_refresh", "SSE_APP_REFRESH", "a", ""]
    )
    values = st.one_of(
        st.just(value),
        st.just(f'"{value}"'),
        st.just(value[:-1]),
        st.just(value + "A"),
        st.just(value.swapcase()),
        st.just(""),
        st.text("abc=\"' ,\\\t", max_size=8),
    )
    pairs = st.builds("{}{}{}".format, names, st.sampled_from(["=", "=", "", " = "]), values)
    return st.lists(pairs, max_size=3).map(lambda found: ";".join(found)) | st.lists(pairs, max_size=3).map(
        "; ".join
    )


class Session(NamedTuple):
    """What a login gives."""

    access: str
    refresh: str


def _log_in(fuzzed: Fuzzed) -> Session:
    body = {"username": USER, "password": PASSWORD, "cookie": False}
    tokens = fuzzed.http.post("/api/v1/auth/login", json=body).raise_for_status().json()
    return Session(tokens["access_token"], tokens["refresh_token"])


def _bodies(refresh: str) -> st.SearchStrategy[bytes]:
    """Make up the bodies of a refresh or a logout, in which the token may be."""
    texts = st.sampled_from(
        [refresh, refresh, refresh[1:], refresh + " ", refresh.lower(), "", "\0", "x" * 9000]
    )
    members = st.dictionaries(
        st.sampled_from(["refresh_token", "refresh_token", "token", "cookie"]), texts | JSON, max_size=2
    )
    return st.one_of(
        st.just(b""),
        st.just(b""),
        members.map(lambda body: json.dumps(body).encode()),
        st.binary(max_size=20),
    )


def _is_presented(refresh: str, cookies: str, body: bytes) -> bool:
    """Return whether a request has the refresh token where it is read: in the body, or else in the one cookie."""
    try:
        request = json.loads(body) if body else {}
    except ValueError:
        return False
    if not isinstance(request, dict):
        return False
    token = request.get("refresh_token")
    return refresh in (token, *re.findall(r"[^;=\" \t]+", cookies)) if token in (None, refresh) else False


def test_no_cookie_or_body_but_the_right_one_goes_on_with_a_session(fuzzed: Fuzzed) -> None:
    session = _log_in(fuzzed)

    @fuzzed.fuzz(60)
    @given(
        st.sampled_from(["refresh"] * 5 + ["logout"]),
        st.data(),
        manners("half-close", "half-close", "reset"),
        st.randoms(),
    )
    def ask(what: str, data: st.DataObject, manner: Manner, chance: random.Random) -> None:
        nonlocal session
        cookies = data.draw(quoted_cookies(session.refresh))
        body = data.draw(_bodies(session.refresh))
        presented = _is_presented(session.refresh, cookies, body)
        if presented and manner.end == "reset":
            return  # it may be spent, and its answer is lost
        headers = [f"Cookie: {cookies}"] if cookies else []
        request = request_of("POST", f"/api/v1/auth/{what}", *headers, body=body)
        heard = converse(fuzzed.port(chance), [request], manner)
        if heard.cut:
            pass  # nothing of it was right
        elif heard.answers[0].status in (200, 204):
            (answer,) = heard.answers
            assert presented, (cookies, body, answer)
            if what == "logout":
                session = _log_in(fuzzed)
            else:
                document = answer.json()
                cookie = re.match(r"[^=]+=([^;]+)", answer.headers.get("set-cookie", ""))
                refresh = document.get("refresh_token") or (cookie and cookie[1]) or ""
                session = Session(document["access_token"], refresh)
        else:
            assert heard.answers[0].names_what_is_wrong(), heard.answers[0]
        me = fuzzed.http.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {session.access}"})
        assert me.status_code == 200, (cookies, body)
        look()

    with fuzzed.nothing_is_left(60) as look:
        ask()


def test_no_made_up_login_is_a_5xx_or_a_login(fuzzed: Fuzzed) -> None:
    members = st.sampled_from(["username", "password", "cookie"])
    values = st.one_of(st.sampled_from([USER, PASSWORD + " ", "x" * 2000, "\0", True]), JSON)

    @fuzzed.fuzz(25)
    @given(
        st.dictionaries(members, values, max_size=3).map(lambda body: json.dumps(body).encode())
        | st.binary(max_size=30),
        manners("half-close", "half-close", "reset"),
        st.randoms(),
    )
    def ask(body: bytes, manner: Manner, chance: random.Random) -> None:
        request = request_of("POST", "/api/v1/auth/login", "Content-Type: application/json", body=body)
        for answer in converse(fuzzed.port(chance), [request], manner).answers:
            assert answer.names_what_is_wrong(), (body, answer)
        look()

    with fuzzed.nothing_is_left(25) as look:
        ask()
