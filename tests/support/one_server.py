"""Several processes that are one server: what each of them says of all of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.people import Ear, Site
from tests.support.upgradable import Upgradable
from tests.support.waiting import until

CONNECTIONS = "/api/v1/admin/connections"


class OneServer:
    """The processes of one server, each as a site of its own.

    Args:
        servers: they run, and know each other.
    """

    def __init__(self, servers: Sequence[Upgradable]) -> None:
        self.servers = servers
        self.sites = [Site(server) for server in servers]

    def status(self, site: Site) -> dict[str, Any]:
        """Return the status of all, as one says it."""
        answer: dict[str, Any] = site.http.get("/api/v1/sse/status").raise_for_status().json()
        return answer

    def listed(self, site: Site, **query: Any) -> dict[str, Any]:
        """Return the connections of all, as one lists them."""
        answer = site.http.get(CONNECTIONS, params=query, headers=site.admin)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def complete(self, site: Site, **query: Any) -> dict[str, Any]:
        """Return the connections of all, as one lists them once it has found none too busy to answer in time."""
        found: dict[str, Any] = {}

        def all_have_answered() -> bool:
            found.clear()
            found.update(self.listed(site, **query))
            return not any(found[name] for name in found if name.endswith("_missing"))

        until(all_have_answered, "all answer")
        return found

    @contextmanager
    def stopped(self, number: int) -> Iterator[None]:
        """Let one process hang."""
        pid = self.servers[number].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End all streams and connections to it."""
        for site in self.sites:
            site.leave_all()
            site.http.close()


def samples(site: Site, part: str) -> dict[str, dict[str, float]]:
    """Return the values of each metric by its ``worker`` or ``node``; those without one are under the empty text."""
    found: dict[str, dict[str, float]] = {}
    text = site.http.get("/metrics").raise_for_status().text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            its = labels.pop(part, "")
            name = sample.name + "".join(f" {key}={value}" for key, value in sorted(labels.items()))
            values = found.setdefault(name, {})
            assert its not in values, f"{name} of {part} {its} comes twice"
            values[its] = sample.value
    return found


def figures(ear: Ear) -> list[dict[str, Any]]:
    """Return the live figures that a stream of the administrators' channel has brought so far."""
    return [data for type, data in list(ear.events) if type == "figures"]
