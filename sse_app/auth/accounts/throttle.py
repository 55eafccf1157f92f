"""Limits on guessing passwords: pure, with the time handed in.

An attacker must neither guess a password nor lock the user out. So the delay grows for one address with one
account, and other addresses do not wait. An attacker with many addresses has one try from each while an account
is under attack, and the limit of each address over all accounts.

The counts stay in the memory of the process and not in the store: each attempt is decided before anything
else is done for it, and a flood of wrong passwords must not become a flood of writes. Nodes that share accounts tell
each other of each wrong password (`cluster.login_attempts`), and count those of all; what is being checked at the same
moment on several of them is counted when it has turned out to be wrong. Where no other node runs, a restart forgets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import islice

import msgspec

from sse_app.core.addresses import network_of

FREE_TRIES = 5
"""Wrong passwords of one address for one account before it has to wait."""

UNDER_ATTACK = 30
"""Recent wrong passwords for one account, from anywhere, after which an address has a single free try."""

FREE_TRIES_OF_ADDRESS = 50
"""Wrong passwords of one address over all accounts before it has to wait."""

LONGEST_DELAY = 300.0
"""Seconds."""

FORGET_AFTER = 900.0
"""Seconds without a wrong password after which those before it count no more."""

KNOWN_FOR = 7 * 86_400.0
"""Seconds for which an address is known to be one of an account's own after a right password."""

TELL_AFTER = KNOWN_FOR / 2
"""Seconds after which other nodes are told again that it is: not at each refresh of its sessions."""

MAX_ENTRIES = 100_000

MOST_SUMMED_UP = 20_000
"""How many entries of each kind, the newest, a node that starts is given."""

Key = tuple[str, str]


class _Failures(msgspec.Struct):
    count: int = 0
    last: float = 0.0
    free_at: float = 0.0


class Counted(msgspec.Struct, array_like=True):
    """What a node has counted of one address with one account, or of either: all times in seconds from now.

    Args:
        account, network: whose, as the keys of the counts are.
        count: wrong passwords.
        since: how long ago the last one was.
        wait: for how long no further one may be tried.
    """

    account: str
    network: str
    count: int
    since: float
    wait: float


class Known(msgspec.Struct, array_like=True):
    """An address that is one of an account's own, and for how many seconds it still is."""

    account: str
    network: str
    left: float


class Summary(msgspec.Struct):
    """What a node has counted, for one that begins to."""

    failures: list[Counted]
    known: list[Known]


class LoginThrottle:
    """Counts wrong passwords until a quarter of an hour has passed without one, and what is being checked.

    ``tell``, where it is set, is called with ``failed``, ``succeeded`` or ``known``, account and network, for other
    nodes to `apply`.
    """

    def __init__(self) -> None:
        self.tell: Callable[[str, str, str], None] | None = None
        self._told: dict[Key, float] = {}
        """When other nodes were told last that an address is one of an account's own."""
        self._failures: dict[Key, _Failures] = {}
        self._checking: Counter[Key] = Counter()
        self._known: dict[Key, float] = {}
        """By account and address: until when a right password from there counts."""

    def wait(self, account: str, address: str, now: float) -> float:
        """Return for how many seconds this address must not try this account; 0 where it may.

        What the address got wrong with other accounts does not count for an account that has logged in from
        there: one stranger behind the same proxy cannot keep out those who come every day.
        """
        network = network_of(address)
        keys = [(account, network)]
        if self._known.get((account, network), -math.inf) <= now:
            keys.append(("", network))
        return max(0.0, *(self._get(key, now).free_at - now for key in keys))

    def has_room(self, account: str, address: str, now: float) -> bool:
        """Return whether another password may be checked beside those that are, were these all wrong."""
        network = network_of(address)
        free_tries = FREE_TRIES if self._get((account, ""), now).count < UNDER_ATTACK else 1
        for key, free in (((account, network), free_tries), (("", network), FREE_TRIES_OF_ADDRESS)):
            checking = self._checking[key]
            if checking and self._get(key, now).count + checking >= free:
                return False
        return True

    def begin(self, account: str, address: str) -> None:
        """Count a password that is being checked, until `end`."""
        network = network_of(address)
        self._checking.update(((account, network), ("", network)))

    def end(self, account: str, address: str) -> None:
        """Count it no more."""
        network = network_of(address)
        for key in ((account, network), ("", network)):
            self._checking[key] -= 1
            if not self._checking[key]:
                del self._checking[key]

    def failed(self, account: str, address: str, now: float) -> None:
        """Count a wrong password."""
        network = network_of(address)
        self._count_failure(account, network, now)
        if self.tell is not None:
            self.tell("failed", account, network)

    def _count_failure(self, account: str, network: str, now: float) -> None:
        of_account = self._count((account, ""), now)
        free_tries = FREE_TRIES if of_account.count < UNDER_ATTACK else 1
        _delay(self._count((account, network), now), free_tries, now)
        _delay(self._count(("", network), now), FREE_TRIES_OF_ADDRESS, now)

    def succeeded(self, account: str, address: str, now: float) -> None:
        """Forget the wrong passwords of this address for this account: it has the right one."""
        network = network_of(address)
        self._failures.pop((account, network), None)
        self._remember(account, network, now)
        if self.tell is not None:
            self._told_now((account, network), now)
            self.tell("succeeded", account, network)

    def remember(self, account: str, address: str, now: float) -> None:
        """Take this address for one of the account's own: one of its sessions is used from there."""
        network = network_of(address)
        self._remember(account, network, now)
        if self.tell is not None and self._told.get((account, network), -math.inf) < now - TELL_AFTER:
            self._told_now((account, network), now)
            self.tell("known", account, network)

    def apply(self, what: str, account: str, network: str, now: float) -> None:
        """Take what another node has told; what is not known is passed over."""
        if what == "failed":
            self._count_failure(account, network, now)
        elif what == "succeeded":
            self._failures.pop((account, network), None)
        if what in ("succeeded", "known"):
            self._remember(account, network, now)

    def summary(self, now: float) -> Summary:
        """Return what has been counted, the newest of it where that is very much."""
        failures = list(islice(reversed(self._failures.items()), MOST_SUMMED_UP))
        known = list(islice(reversed(self._known.items()), MOST_SUMMED_UP))
        return Summary(
            [
                Counted(*key, each.count, now - each.last, each.free_at - now)
                for key, each in reversed(failures)
            ],
            [Known(*key, until - now) for key, until in reversed(known)],
        )

    def merge(self, summary: Summary, now: float) -> None:
        """Take what another node has counted, where it is more than what is known here."""
        for counted in summary.failures:
            key = (counted.account, counted.network)
            if counted.count > self._get(key, now).count:
                self._put(key, _Failures(counted.count, now - counted.since, now + counted.wait))
        for known in summary.known:
            if now + known.left > self._known.get((known.account, known.network), -math.inf):
                self._remember(known.account, known.network, now + known.left - KNOWN_FOR)

    def _told_now(self, key: Key, now: float) -> None:
        self._told.pop(key, None)
        self._told[key] = now
        if len(self._told) > MAX_ENTRIES:
            del self._told[next(iter(self._told))]

    def _remember(self, account: str, network: str, now: float) -> None:
        key = (account, network)
        self._known.pop(key, None)
        self._known[key] = now + KNOWN_FOR
        if len(self._known) > MAX_ENTRIES:
            del self._known[next(iter(self._known))]

    def _get(self, key: Key, now: float) -> _Failures:
        failures = self._failures.get(key)
        if failures is None or now - max(failures.last, failures.free_at) > FORGET_AFTER:
            return _Failures()
        return failures

    def _count(self, key: Key, now: float) -> _Failures:
        failures = self._get(key, now)
        failures.count += 1
        failures.last = now
        self._put(key, failures)
        return failures

    def _put(self, key: Key, failures: _Failures) -> None:
        self._failures.pop(key, None)
        self._failures[key] = failures  # in the order of the last one
        if len(self._failures) > MAX_ENTRIES:
            del self._failures[next(iter(self._failures))]


def _delay(failures: _Failures, free_tries: int, now: float) -> None:
    if failures.count >= free_tries:
        exponent = min(failures.count - free_tries, 10)
        failures.free_at = now + min(LONGEST_DELAY, 2.0**exponent)
