"""What made-up requests are sent to, and that what it holds is afterwards what it was before."""

from __future__ import annotations

import gc
import random
import socket
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from tests.support.forging import Forge
from tests.support.minting import EVERYTHING, mint
from tests.support.usage import MEBIBYTE
from tests.support.waiting import until

PER_USER = 12
"""Streams that a user may have."""

MARKS = [pytest.mark.ci, pytest.mark.expects_logs("login_refused", "proxy_not_trusted", "refresh_reused")]
"""Of each test of them."""


class Fuzzed(ABC):
    """One server, or several on one log.

    Args:
        state_dir: that of one of them, with `forges` as the keys of all.
        forges: the keys.
        ports: of the servers.

    Attributes:
        is_one_process: whether all that connects to a port comes to the same process.
        times: how many times as often as in the short form something is asked.
    """

    is_one_process = True
    times = 1

    def __init__(self, state_dir: Path, forges: Sequence[Forge], ports: Sequence[int]) -> None:
        self.state_dir = state_dir
        self.forges = forges
        self.ports = ports
        self.access = self.token(TokenKind.ACCESS, EVERYTHING)
        self.stream = self.token(TokenKind.STREAM, EVERYTHING.only_subscribing())
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{ports[0]}",
            headers={"Authorization": f"Bearer {self.access}"},
            timeout=60,
        )

    def token(self, kind: TokenKind, grants: Grants, subject: str = "tester") -> str:
        """Return a token that is longer in force than any run takes."""
        return mint(self.state_dir, kind, grants, subject=subject, ttl=36_000)

    def token_for(self, *patterns: str) -> str:
        """Return a stream token for patterns of channels, quickly: the keys are not read for each."""
        forge = self.forges[0]
        return forge.token("stream", claims=forge.claims(sse={"subscribe": patterns}))

    def fuzz(self, count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Return how hypothesis is to make something up, so many times in the short form."""
        settings = hypothesis(
            max_examples=count * self.times,
            deadline=None,
            database=None,
            print_blob=True,
            phases=[Phase.generate],  # a smaller example would be waited for again and again
            suppress_health_check=[*HealthCheck],
        )

        def fuzzing(test: Any) -> Callable[..., None]:
            test.hypothesis.inner_test = _printing_failures(test.hypothesis.inner_test)
            return settings(test)  # type: ignore[no-any-return]

        return fuzzing

    def mark(self) -> str:
        """Publish an event, and return its id."""
        body = {"event": "mark", "data": 0}
        id: str = self.http.post("/api/v1/sse/dashboard", json=body).raise_for_status().json()["id"]
        return id

    def port(self, chance: random.Random) -> int:
        """Return the port of any of the servers."""
        return chance.choice(self.ports)

    @abstractmethod
    def held(self) -> Mapping[str, int]:
        """Return what the servers hold just now, by names; what is said quickly, and of this moment."""

    @abstractmethod
    def kept(self) -> Mapping[str, int]:
        """Return what takes longer to say."""

    @abstractmethod
    def memory(self) -> int:
        """Return how many bytes of memory the servers have; 0 where that says nothing."""

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Fail where the servers log something unexpected meanwhile."""
        yield

    @contextmanager
    def nothing_is_left(self, count: int) -> Iterator[Callable[[], None]]:
        """Yield a function that waits until the servers hold what they held before; at the end that is waited for too.

        Args:
            count: how many requests a short form sends, about: answers to repeated ones are kept, and log lines wait.
        """
        self.http.get("/healthz")  # so that this connection is open before as after
        held, kept = self.held(), self.kept()
        memory = self.memory()

        def is_as_before() -> bool:
            now.update(self.held())
            return not _more(held, now)

        def look() -> None:
            try:
                until(is_as_before, "all is as before", pause=0.001)
            except AssertionError as error:
                raise AssertionError(f"more is held than before: {_more(held, now)}") from error

        def is_kept_as_before() -> bool:
            gc.collect()
            now.update(self.kept())
            return not _more(kept, now)

        now: dict[str, int] = {}
        with self.quiet():
            yield look
            look()
            try:
                until(is_kept_as_before, "all is as before")
            except AssertionError as error:
                raise AssertionError(f"more is kept than before: {_more(kept, now)}") from error
        assert self.memory() <= memory + 16 * MEBIBYTE + 200 * count * self.times

    def assert_streams_are_counted(self) -> None:
        """Check that a user may have just as many streams as the settings say: none too many is counted, none less.

        Not where streams that are opened one after the other come to several processes, which tell each other later.
        """
        if not self.is_one_process:
            return
        token = self.token(TokenKind.STREAM, EVERYTHING.only_subscribing(), subject="counted")
        request = f"GET /api/v1/sse/alerts?token={token} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for _ in range(2):
            with ExitStack() as ends:
                statuses = []
                for _ in range(PER_USER + 1):
                    sock = ends.enter_context(socket.create_connection(("127.0.0.1", self.ports[0]), 30))
                    sock.sendall(request)
                    statuses.append(int(sock.recv(4096).split()[1]))
                assert statuses == [200] * PER_USER + [429]
            until(lambda: self._streams_of("counted") == 0, "the streams are counted no more")

    def _streams_of(self, subject: str) -> int:
        listed = self.http.get("/api/v1/admin/connections").raise_for_status().json()["connections"]
        return sum(row["subject"] == subject for row in listed)


def _printing_failures(test: Callable[..., None]) -> Callable[..., None]:
    """Return a test that prints each of its failures.

    Hypothesis calls one that has failed a second time, and tells of that alone. But what the first call has left behind
    may make it fail otherwise.
    """

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            test(*args, **kwargs)
        except Exception:
            traceback.print_exc(file=sys.stdout)
            raise

    return run


def _more(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return what there is more of than before; of what is counted up and down also where there is less."""
    return {
        name: (value, now[name])
        for name, value in before.items()
        if now[name] > value or (now[name] < value and ("streams" in name or "bytes of" in name))
    }
