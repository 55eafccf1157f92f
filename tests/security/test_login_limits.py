"""Limits on guessing, publishing and listening: they hold whoever asks and whatever the headers say."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest

from sse_app.auth.accounts.throttle import FREE_TRIES_OF_ADDRESS
from sse_app.auth.tokens.issuer import TokenKind
from tests.support.people import PASSWORD, Ear, Site, bearer, site
from tests.support.waiting import until

USERS = tuple(f"user{number}" for number in range(9))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    state_dir = tmp_path_factory.mktemp("limits") / "state"
    with site(state_dir, users=USERS, LIMITS__PUBLISH_RATE=5) as served:
        yield served


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that believes a proxy at 127.0.5.1, and that proxy only."""
    state_dir = tmp_path_factory.mktemp("proxied") / "state"
    trusted = ["127.0.5.1/32", "10.0.0.0/8"]
    with site(state_dir, users=USERS, expected=("proxy_not_trusted",), TRUSTED_PROXIES=trusted) as served:
        yield served


def guess(desk: Site, name: str, address: str, **headers: str) -> httpx.Response:
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=60) as http:
        return http.post(
            f"{desk.server.url}/api/v1/auth/login",
            json={"username": name, "password": "wrong guess", "cookie": False},
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )


def at_once(count: int, ask: Callable[[int], httpx.Response]) -> Counter[int]:
    """Ask in that many threads at the same moment, and return how often each status came."""
    gate = threading.Barrier(count)

    def one(number: int) -> int:
        gate.wait()
        return ask(number).status_code

    with ThreadPoolExecutor(count) as threads:
        return Counter(threads.map(one, range(count)))


def guess_until_refused(desk: Site, name: str, address: str, **headers: str) -> int:
    """Return how many guesses were answered 401 before the first 429."""
    for count in range(100):
        answer = guess(desk, name, address, **headers)
        if answer.status_code == 429:
            return count
        assert answer.status_code == 401, answer.text
    raise AssertionError("a hundred guesses were free")


def assert_refused(ask: Callable[[], int], tried_at: float) -> float:
    """Check that the next guess is refused, unless a second has passed since the last that was tried.

    One that comes then is tried, and makes the wait twice as long.

    Args:
        ask: guesses, and returns the status.
        tried_at: before the last one that was tried.

    Returns:
        When that was now.
    """
    while True:
        asked_at = time.monotonic()
        if (status := ask()) != 401:
            assert status == 429
            return tried_at
        assert time.monotonic() - tried_at >= 1, "it was tried although it had to wait"
        tried_at = asked_at


def test_the_delay_grows_with_each_wrong_password_and_says_how_long(desk: Site) -> None:
    waits: list[int] = []
    refused_at = time.monotonic()
    while len(waits) < 3:
        answer = guess(desk, "user0", "127.0.4.1")
        now = time.monotonic()
        if answer.status_code == 401:
            refused_at = now
            continue
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "too_many_attempts"
        wait = int(answer.headers["retry-after"])
        if now - refused_at > 1:  # a part of it is over: the one after the next guess is longer
            time.sleep(wait)
            continue
        waits.append(wait)
        if len(waits) == 3:  # also the right one; a shorter wait may be over before a busy machine asks
            assert desk.try_login("user0", address="127.0.4.1").status_code == 429
        time.sleep(waits[-1])  # the property is the time itself
    assert waits == sorted(waits)
    assert waits[-1] >= 3
    assert desk.try_login("user0", address="127.0.4.2").status_code == 200  # another address does not wait
    assert desk.try_login("user1", address="127.0.4.1").status_code == 200  # nor another account


def test_who_has_the_right_password_begins_anew(desk: Site) -> None:
    for _ in range(4):
        assert guess(desk, "user1", "127.0.4.10").status_code == 401
    assert desk.try_login("user1", address="127.0.4.10").status_code == 200
    for _ in range(4):
        assert guess(desk, "user1", "127.0.4.10").status_code == 401


@pytest.mark.long
def test_an_address_that_tries_many_accounts_waits_for_all(desk: Site) -> None:
    statuses = [guess(desk, f"nobody{number}", "127.0.4.20").status_code for number in range(53)]
    assert set(statuses[:49]) == {401}
    assert statuses[-1] == 429
    assert desk.try_login("user2", address="127.0.4.20").status_code == 429
    assert desk.try_login("user2", address="127.0.4.21").status_code == 200


def test_of_a_burst_of_concurrent_guesses_hardly_any_is_checked(desk: Site) -> None:
    statuses: Counter[int] = Counter()
    gate = threading.Barrier(40)

    def one() -> None:
        gate.wait()
        statuses[guess(desk, "user3", "127.0.4.30").status_code] += 1

    threads = [threading.Thread(target=one) for _ in range(40)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One more after a second, the next after two more.
    assert statuses[401] <= 5 + math.log2(1 + time.monotonic() - begun)
    assert statuses[401] + statuses[429] == 40


@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_logins_with_the_right_password_at_the_same_moment_all_succeed(desk: Site, count: int) -> None:
    answers = at_once(count, lambda number: desk.try_login("user5", address=f"127.0.4.{50 + count}"))
    assert answers == Counter({200: count})


def test_a_right_password_among_wrong_ones_at_the_same_moment_frees_no_guess(desk: Site) -> None:
    """Guesses of three at once, again and again: what is being checked counts as if it were wrong."""
    statuses: Counter[int] = Counter()
    begun = time.monotonic()
    for _ in range(4):
        statuses += at_once(3, lambda number: guess(desk, "user6", "127.0.4.40"))
    # The fifth makes it wait for a second, and then there is one more; the next after two more.
    assert statuses[401] <= 5 + max(1, math.log2(1 + time.monotonic() - begun))
    assert statuses[401] + statuses[429] == 12


@pytest.mark.slow
def test_an_address_that_tries_many_accounts_at_once_has_no_more_tries_than_one_after_the_other(
    desk: Site,
) -> None:
    statuses = at_once(70, lambda number: guess(desk, f"nobody{number}", "127.0.4.41"))
    statuses += at_once(40, lambda number: guess(desk, f"nobody{100 + number}", "127.0.4.41"))
    assert statuses[401] <= FREE_TRIES_OF_ADDRESS + 1
    assert statuses[429] > 0


@pytest.mark.slow
def test_a_stranger_behind_the_same_proxy_does_not_keep_out_those_who_log_in_from_there(desk: Site) -> None:
    assert desk.try_login("user7", address="127.0.4.42").status_code == 200
    statuses: Counter[int] = Counter()
    for batch in range(0, 80, 20):
        statuses += at_once(20, lambda number, batch=batch: guess(desk, f"who{batch + number}", "127.0.4.42"))  # type: ignore[misc]
    assert statuses[429] > 0
    numbers = itertools.count(80)

    def waits_long() -> bool:
        answer = guess(desk, f"who{next(numbers)}", "127.0.4.42")
        return answer.status_code == 429 and int(answer.headers["retry-after"]) > 3

    until(waits_long, "it has to wait for some seconds")
    assert desk.try_login("user8", address="127.0.4.42").status_code == 429  # first: it ends with the delay
    assert desk.try_login("user7", address="127.0.4.42").status_code == 200


@pytest.mark.long
def test_a_network_that_fills_the_password_queue_leaves_the_others_their_share(proxied: Site) -> None:
    stopped = threading.Event()
    statuses: Counter[int] = Counter()

    def attack(number: int) -> None:
        with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.5.1"), timeout=60) as http:
            while not stopped.is_set():
                address = f"2001:db8:7:{random.getrandbits(16):x}::1"
                answer = http.post(
                    f"{proxied.server.url}/api/v1/auth/login",
                    json={"username": f"nobody{random.getrandbits(30)}", "password": "wrong guess"},
                    headers={"X-Forwarded-For": address},
                )
                statuses[answer.status_code] += 1

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(48)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: statuses[503] > 5, "the queue is full")
        answers = []
        for _ in range(6):
            with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.5.1"), timeout=60) as http:
                answer = http.post(
                    f"{proxied.server.url}/api/v1/auth/login",
                    json={"username": "user1", "password": PASSWORD},
                    headers={"X-Forwarded-For": "2001:db8:8::1"},
                )
            answers.append(answer.status_code)
        assert answers == [200] * 6
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("attackers", [1, pytest.param(60, marks=pytest.mark.long)])
def test_the_right_user_logs_in_while_100_wrong_passwords_a_second_come(desk: Site, attackers: int) -> None:
    stopped = threading.Event()
    statuses: Counter[int] = Counter()

    def attack(number: int) -> None:
        address = f"127.0.{60 + attackers // 60}.{number % 250 + 1}"
        transport = httpx.HTTPTransport(local_address=address)
        with httpx.Client(transport=transport, timeout=60) as http:
            while not stopped.is_set():
                answer = http.post(
                    f"{desk.server.url}/api/v1/auth/login",
                    json={"username": "user4", "password": "wrong guess"},
                )
                statuses[answer.status_code] += 1
                stopped.wait(max(1, attackers) / 100)

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(attackers)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(
            3
        )  # the attack's own length; the property is how few of its guesses are tried in that time
        answers: list[httpx.Response] = []

        def has_a_turn() -> bool:
            answers.append(desk.try_login("user4", address="127.0.8.1"))
            return answers[-1].status_code != 503

        until(has_a_turn, "the right user has a turn", pause=0.2)
        assert answers[-1].status_code == 200, answers[-1].text
        assert desk.http.get("/healthz").status_code == 200
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    assert set(statuses) <= {401, 429, 503}
    assert statuses[401] < 250, statuses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("127.0.6.1", {"X_Forwarded_For": "9.9.9.{}"}),
        ("127.0.6.2", {"X_Forwarded_For": "9.9.9.{}, 127.0.5.1"}),
        ("127.0.6.3", {"X_Real_IP": "9.9.9.{}"}),
        ("127.0.6.4", {"Forwarded": "for=9.9.9.{}"}),
        ("127.0.6.5", {"True_Client_IP": "9.9.9.{}"}),
        ("127.0.6.6", {"CF_Connecting_IP": "9.9.9.{}"}),
    ],
    ids=str,
)
def test_a_forwarded_address_from_anybody_is_not_believed(
    proxied: Site, address: str, headers: dict[str, str]
) -> None:
    for number in range(5):
        spoofed = {name: value.format(number) for name, value in headers.items()}
        tried_at = time.monotonic()
        assert guess(proxied, f"x{address}", address, **spoofed).status_code == 401
    spoofed = {name: value.format(77) for name, value in headers.items()}
    assert_refused(lambda: guess(proxied, f"x{address}", address, **spoofed).status_code, tried_at)


def test_a_trusted_proxy_is_believed_about_the_last_address_and_not_about_those_before(proxied: Site) -> None:
    def ask(forwarded: str) -> int:
        return guess(proxied, "user5", "127.0.5.1", X_Forwarded_For=forwarded).status_code

    for number in range(5):
        tried_at = time.monotonic()
        assert ask(f"9.9.9.{number}, 8.8.8.8") == 401
    for forwarded in (
        "1.1.1.1, 8.8.8.8",
        "8.8.8.8",
        "1.1.1.1,  8.8.8.8",
        "8.8.8.8, 10.1.2.3",
        "8.8.8.8, 127.0.5.1",
        "::ffff:8.8.8.8",
    ):
        tried_at = assert_refused(partial(ask, forwarded), tried_at)
    assert ask("8.8.8.8, 7.7.7.7") == 401
    assert ask("8.8.8.8, nonsense") == 401  # an address that nobody knows
    assert ask("2001:db8:1:2::1") == 401
    for number in range(4):
        tried_at = time.monotonic()
        assert ask(f"2001:db8:1:2:{number}::7") == 401
    assert_refused(partial(ask, "2001:db8:1:2:ffff::9"), tried_at)  # a /64 is one customer
    assert ask("2001:db8:1:3::9") == 401


def test_a_publisher_beyond_its_rate_is_429_with_retry_after_and_another_is_not(desk: Site) -> None:
    tokens = [bearer(desk.mint(TokenKind.ACCESS, "publisher")) for _ in range(2)]
    event = {"channel": "dashboard", "event": "e", "data": {}}

    def publish(count: int, headers: dict[str, str]) -> httpx.Response:
        return desk.http.post("/api/v1/sse", json={"events": [event] * count}, headers=headers)

    accepted = 0
    while True:
        begun = time.monotonic()
        refused = publish(5, tokens[0])
        if refused.status_code == 429 and time.monotonic() - begun < 1:
            break  # at once, and not when the rate allows it again
        assert refused.status_code in (201, 429)
        accepted += 5 * (refused.status_code == 201)
        assert accepted < 50  # on a busy machine one of them may take as long as the rate wants
    assert accepted
    assert refused.json()["error"]["code"] == "too_many_events"
    assert int(refused.headers["retry-after"]) == 1
    assert publish(5, tokens[1]).status_code == 201
    time.sleep(int(refused.headers["retry-after"]) + 0.1)
    assert publish(4, tokens[0]).status_code == 201
    history = desk.http.get("/api/v1/sse/dashboard/history?limit=1000", headers=tokens[0]).json()["events"]
    assert len(history) == accepted + 9


def test_streams_are_limited_per_user_and_per_address_and_a_place_left_is_free(proxied: Site) -> None:
    token = proxied.mint(TokenKind.STREAM, "busy")
    ears = [Ear(proxied.server, "dashboard", token) for _ in range(100)]
    assert {ear.status for ear in ears} == {200}
    with httpx.Client(timeout=60) as http:
        answer = http.get(f"{proxied.server.url}/api/v1/sse/dashboard", params={"token": token})
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
    again = proxied.mint(TokenKind.STREAM, "busy", "another session")
    assert proxied.stream_status(again) == 429
    assert proxied.stream_status(proxied.mint(TokenKind.STREAM, "calm")) == 200
    for ear in ears:
        ear.leave()
    until(lambda: proxied.stream_status(token) != 429, "a place that was left is free")
    assert PASSWORD not in proxied.server.log_path.read_text()
