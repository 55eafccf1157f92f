"""Limits that several nodes share: wrong passwords are counted by all, a rate is divided among them."""

from __future__ import annotations

import random

import msgspec

from sse_app.auth.accounts.throttle import FREE_TRIES, FREE_TRIES_OF_ADDRESS, LoginThrottle, Summary
from sse_app.core.rate_limit import RateLimit


def linked(count: int) -> list[LoginThrottle]:
    """Return throttles of nodes that tell each other everything; the time is always 0."""
    throttles = [LoginThrottle() for _ in range(count)]
    for one in throttles:
        others = [other for other in throttles if other is not one]

        def tell(what: str, account: str, network: str, others: list[LoginThrottle] = others) -> None:
            for other in others:
                other.apply(what, account, network, 0.0)

        one.tell = tell
    return throttles


def test_whichever_node_has_a_wrong_password_all_make_the_address_wait() -> None:
    chance = random.Random(1)
    alone, nodes = LoginThrottle(), linked(4)
    names, addresses = ("ann", "bob"), ("10.0.0.1", "10.0.0.2", "2001:db8::1")
    for _ in range(500):
        name, address = chance.choice(names), chance.choice(addresses)
        for one in (alone, chance.choice(nodes)):
            one.failed(name, address, 0.0)
        if chance.random() < 0.1:
            for one in (alone, chance.choice(nodes)):
                one.succeeded(name, address, 0.0)
        for name in names:
            for address in addresses:
                assert {node.wait(name, address, 0.0) for node in nodes} == {alone.wait(name, address, 0.0)}


def test_a_node_that_begins_counts_what_the_others_have_counted() -> None:
    before = LoginThrottle()
    for _ in range(FREE_TRIES + 1):
        before.failed("ann", "10.0.0.1", 100.0)
    before.succeeded("bob", "10.0.0.9", 100.0)
    for _ in range(FREE_TRIES_OF_ADDRESS + 3):
        before.failed("eve", "10.0.0.9", 100.0)
    text = msgspec.msgpack.encode(before.summary(101.0))
    after = LoginThrottle()  # by another clock
    after.merge(msgspec.msgpack.decode(text, type=Summary), 7.0)
    for name, address in (("ann", "10.0.0.1"), ("ann", "10.0.0.2"), ("ann", "10.0.0.9"), ("bob", "10.0.0.9")):
        assert after.wait(name, address, 7.0) == before.wait(name, address, 101.0)
    assert after.wait("ann", "10.0.0.9", 7.0) > after.wait("bob", "10.0.0.9", 7.0) == 0
    after.merge(before.summary(2000.0), 8.0)  # what was long ago takes nothing away and adds nothing
    assert after.wait("ann", "10.0.0.1", 7.0) == before.wait("ann", "10.0.0.1", 101.0)


def test_what_is_known_of_an_address_is_not_told_at_each_refresh() -> None:
    told: list[tuple[str, str, str]] = []
    throttle = LoginThrottle()
    throttle.tell = lambda *words: told.append(words)
    for hour in range(24 * 7):
        throttle.remember("ann", "10.0.0.1", hour * 3600.0)
    assert told == [("known", "ann", "10.0.0.1")] * 2


def test_a_word_of_a_newer_version_is_passed_over() -> None:
    throttle = LoginThrottle()
    throttle.apply("cheered", "ann", "10.0.0.1", 0.0)
    assert throttle.summary(0.0) == Summary([], [])


def test_nodes_that_share_a_rate_let_through_no_more_than_one_alone() -> None:
    nodes = 4
    limits = [RateLimit(20.0, lambda: nodes) for _ in range(nodes)]
    passed = sum(
        limit.take("t", 1, second / 100) == 0.0
        for second in range(1000)
        for limit in limits
        for _ in range(3)
    )
    assert 20 * 10 <= passed <= 20 * 10 + 20
    nodes = 1  # the others have gone
    passed = sum(limits[0].take("t", 1, 10 + second / 100) == 0.0 for second in range(1000))
    assert 20 * 10 <= passed <= 20 * 10 + 20
