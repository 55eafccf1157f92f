"""Has the limits on guessing passwords count what is tried with any node."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import msgspec

from sse_app.auth.accounts.throttle import LoginThrottle, Summary
from sse_app.cluster.base import Cluster

_ATTEMPT, _SUMMARY = "login_attempt", "login_attempts"


class LoginAttempts:
    """Tells the other nodes of each attempt at once, and counts theirs.

    Args:
        cluster: the other nodes; where there are none, nothing is told.
        throttle: counts the attempts with this node.
    """

    def __init__(self, cluster: Cluster, throttle: LoginThrottle) -> None:
        self._cluster = cluster
        self._throttle = throttle
        if cluster.name:
            throttle.tell = self._tell
            cluster.answer(_ATTEMPT, self._take)
            cluster.answer(_SUMMARY, lambda node, payload: throttle.summary(time.monotonic()))

    async def catch_up(self) -> None:
        """Count what the others have counted."""
        if peers := self._cluster.peers():
            answers = await self._cluster.ask(_SUMMARY, to=peers)
            for payload in answers.by_node.values():
                with suppress(msgspec.ValidationError):  # another version of the program may say it otherwise
                    self._throttle.merge(msgspec.convert(payload, Summary), time.monotonic())

    def _tell(self, what: str, account: str, network: str) -> None:
        self._cluster.tell(_ATTEMPT, [what, account, network])

    def _take(self, node: str, payload: Any) -> None:
        with suppress(msgspec.ValidationError):
            what, account, network = msgspec.convert(payload, tuple[str, str, str])
            self._throttle.apply(what, account, network, time.monotonic())
