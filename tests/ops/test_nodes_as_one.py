"""Nodes on several machines are one server: what belongs to all is seen, counted and ended over all, from each.

Two workers of one machine and a process of another one are the nodes, on one database.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import httpx
import pytest

from sse_app.auth.tokens.issuer import TokenKind
from sse_app.cluster.base import ASK_TIMEOUT
from tests.support.node_processes import NAMES, node_processes
from tests.support.one_server import CONNECTIONS, OneServer, figures, samples
from tests.support.people import Ear, Site, assert_ended
from tests.support.postgres import Postgres, cluster
from tests.support.server_process import clean_environment, run_program
from tests.support.upgradable import Upgradable
from tests.support.waiting import until

NAMED_WITHIN = 5 * ASK_TIMEOUT
"""Within how many seconds a node that hangs is named: one wait and what a busy machine adds.

What must not wait in full again is asked so often that it would take longer.
"""

EXPECTED = ("node_silent", "login_refused", "event_log_unavailable", "accounts_unavailable")


class Machines(OneServer):
    """The nodes of one server, on one database."""

    def __init__(self, postgres: Postgres, url: str, nodes: Sequence[Upgradable]) -> None:
        super().__init__(nodes)
        self.postgres = postgres
        self.url = url

    def agree(self, streams: int) -> bool:
        """Return whether each node says that so many streams are open, and that none is missing."""
        answers = [site.http.get("/api/v1/sse/status") for site in self.sites]
        if any(answer.status_code == 503 for answer in answers):  # the database is away
            return False
        found = [answer.json() for answer in answers]
        return all((each["total_connections"], each["nodes_missing"]) == (streams, []) for each in found)

    def rows(self) -> dict[str, tuple[int, bool]]:
        """Return the number of each node, and whether it has left, by name."""
        database = self.url.rpartition("/")[2]
        found = self.postgres.execute("SELECT name, number, has_left FROM sse_app.nodes", database)
        return {str(name): (int(str(number)), bool(left)) for name, number, left in found}

    def leave(self) -> None:
        for site in self.sites:
            site.leave_all()
        until(lambda: self.agree(0), "all streams are gone")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with cluster() as postgres:
        url = postgres.new_database()
        directory = tmp_path_factory.mktemp("machines")
        with node_processes(directory, url, expected=EXPECTED, LIMITS__STREAMS_PER_USER=12) as nodes:
            machines = Machines(postgres, url, nodes)
            yield machines
            machines.close()


@pytest.fixture(autouse=True)
def leaving(machines: Machines) -> Iterator[None]:
    yield
    machines.leave()


def own(machines: Machines, site: Site) -> str:
    return NAMES[machines.sites.index(site)]


def spread(machines: Machines, *counts: int) -> list[Ear]:
    """Open so many streams on each node."""
    return [
        site.hear(site.mint(TokenKind.STREAM, "ann"), client_id=f"c-{number}-{each}")
        for number, (site, count) in enumerate(zip(machines.sites, counts, strict=True))
        for each in range(count)
    ]


# -- what is seen ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_node_counts_and_lists_the_streams_of_all_machines(machines: Machines) -> None:
    spread(machines, 1, 2, 3)
    for site in machines.sites:
        until(lambda site=site: machines.status(site)["total_connections"] == 6, "all are counted")  # type: ignore[misc]
        assert machines.status(site)["channels"]["dashboard"]["connection_count"] == 6
        found = machines.complete(site)
        assert found["total"] == 6
        # In the order in which they began; of another node's streams that is known to some milliseconds only.
        clients = {
            name: [row["client_id"] for row in found["connections"] if row["node"] == name] for name in NAMES
        }
        assert clients == {
            "web2.1": ["c-0-0"],
            "web2.2": ["c-1-0", "c-1-1"],
            "web10": ["c-2-0", "c-2-1", "c-2-2"],
        }
        numbers = [int(row["connection"]) for row in found["connections"]]
        assert len(set(numbers)) == 6
        assert max(numbers) < 2**53
        down = machines.complete(site, sort="node", order="desc")["connections"]
        assert [row["node"] for row in down] == ["web10"] * 3 + ["web2.2"] * 2 + ["web2.1"]
        assert machines.complete(site, search="WEB10", field="node")["total"] == 3
        assert machines.complete(site, search="web", field="node")["total"] == 0
        pages: list[str] = []
        for offset in range(0, 8, 2):
            page = machines.complete(site, sort="client_id", offset=offset, limit=2)
            pages += [row["client_id"] for row in page["connections"]]
        assert pages == ["c-0-0", "c-1-0", "c-1-1", "c-2-0", "c-2-1", "c-2-2"]


def test_a_scrape_has_the_metrics_of_the_nodes_of_the_machine_that_is_asked(machines: Machines) -> None:
    spread(machines, 1, 2, 3)
    for site in machines.sites[:2]:
        found: dict[str, dict[str, float]] = {}

        def have_answered(site: Site = site, found: dict[str, dict[str, float]] = found) -> bool:
            found.clear()
            found.update(samples(site, "node"))  # one may be too busy to answer in time
            return found["sse_app_streams"] == {"web2.1": 1, "web2.2": 2}

        until(have_answered, "both answer")
        assert found["sse_app_node_up"] == {"web2.1": 1, "web2.2": 1}
        assert {name for name, values in found.items() if "" in values} == {"sse_app_log_head"}
    found = samples(machines.sites[2], "node")
    assert found["sse_app_streams"] == {"web10": 3}
    assert found["sse_app_node_up"] == {"web10": 1}


@pytest.mark.slow
def test_the_live_figures_are_summed_and_by_node(machines: Machines) -> None:
    spread(machines, 1, 2, 3)
    watching = []
    for site in (machines.sites[0], machines.sites[2]):
        token = site.stream_token(site.server.access_token(subject="root", admin=True), "sse_app.admin")
        watching.append(site.hear(token.json()["stream_token"], "sse_app.admin"))
    for ear in watching:
        until(lambda ear=ear: figures(ear) and figures(ear)[-1]["streams"] == 8, "all streams are counted")  # type: ignore[misc]
        last = figures(ear)[-1]
        assert [(each["node"], each["streams"]) for each in last["nodes"]] == [
            ("web2.1", 2),
            ("web2.2", 2),
            ("web10", 4),
        ]
        assert (last["nodes_missing"], last["users"]) == ([], 2)
    # A page that comes back to another machine knows which seconds it has: they have the same number everywhere.
    until(lambda: len(figures(watching[1])) > 4, "there are some")
    identities = [{(each["started_at"], each["number"]) for each in figures(ear)} for ear in watching]
    assert len(identities[0] & identities[1]) >= 2
    with machines.stopped(1):
        until(
            lambda: any(
                (each["nodes_missing"], each["streams"]) == (["web2.2"], 6) for each in figures(watching[1])
            ),
            "it is named",
        )
    until(lambda: figures(watching[1])[-1]["nodes_missing"] == [], "it is there again")


# -- what is done ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("here", "there"), list(permutations(range(3), 2)))
def test_a_kick_reaches_a_stream_on_any_machine(machines: Machines, here: int, there: int) -> None:
    asked, other = machines.sites[here], machines.sites[there]
    token = other.mint(TokenKind.STREAM, "ann", session=f"s-{here}-{there}")
    ears = [site.hear(token, client_id="out") for site in (asked, other)]
    stays = [site.hear(site.mint(TokenKind.STREAM, "bob"), client_id="stays") for site in machines.sites]
    rows = machines.complete(asked, search="out")["connections"]
    (row,) = [row for row in rows if row["node"] == NAMES[there]]
    path = f"{CONNECTIONS}/{row['connection']}/kick"
    until(lambda: asked.http.get(path, headers=asked.admin).json() == {"streams": 2}, "all nodes answer")
    kicked = 0

    def all_are_kicked() -> bool:
        """Kick; a node that is too busy to answer in time is named, and does nothing later."""
        nonlocal kicked
        answer = asked.http.post(path, json={"for": 0}, headers=asked.admin)
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "node_silent"
            return False
        assert answer.status_code == 200
        kicked += answer.json()["kicked"]
        return kicked == 2 or "nodes_missing" not in answer.json()

    until(all_are_kicked, "all nodes answer")
    since = time.monotonic()
    assert kicked == 2
    assert_ended(ears, since, "kicked")
    assert all(ear.open for ear in stays)
    assert {site.stream_status(token) for site in machines.sites} == {401}
    assert asked.http.post(path, json={}, headers=asked.admin).status_code == 404


@pytest.mark.slow
def test_a_renewal_reaches_the_streams_of_all_machines(machines: Machines) -> None:
    site = machines.sites[2]
    old = site.mint(TokenKind.STREAM, "ann", session="s", ttl=12)
    fresh = site.mint(TokenKind.STREAM, "ann", session="s")
    ears = [each.hear(old, client_id="tab") for each in machines.sites]
    other = machines.sites[0].hear(old, client_id="other")
    answer = site.renewed(fresh, "tab")
    assert (answer.status_code, answer.json()["renewed"]) == (200, 3), answer.text
    until(lambda: not other.open, "the stream that was not renewed ends")
    assert other.farewell == "token_expired"
    assert all(ear.open for ear in ears)


def test_the_limit_on_a_users_streams_is_one_over_all_machines(machines: Machines) -> None:
    token = machines.sites[0].mint(TokenKind.STREAM, "greedy")
    spread_ears = [site.hear(token) for site in machines.sites for _ in range(4)]
    assert len(spread_ears) == 12

    def refused(site: Site) -> bool:
        return site.stream_status(token) == 429

    for site in machines.sites:
        until(lambda site=site: refused(site), "one more is refused")  # type: ignore[misc]
    machines.sites[2].leave_all()
    for site in machines.sites[:2]:
        until(lambda site=site: not refused(site), "there is room again")  # type: ignore[misc]


@pytest.mark.slow
def test_wrong_passwords_count_over_all_machines(machines: Machines) -> None:
    """Each node alone would let through several times as many."""

    def guesses(site: Site) -> int:
        return site.try_login("ann", "wrong guess").status_code

    statuses = [guesses(machines.sites[number % 3]) for number in range(30)]
    first = statuses.index(429)
    assert first < 20, statuses
    until(lambda: all(guesses(site) == 429 for site in machines.sites), "all of them refuse")


# -- nodes that hang, die, or move -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_node_that_hangs_is_named_everywhere_and_nothing_else_waits(machines: Machines) -> None:
    first, last = machines.sites[0], machines.sites[2]
    spread(machines, 1, 1, 1)
    (row,) = machines.complete(first, search="web10", field="node")["connections"]
    with machines.stopped(2):
        begun = time.monotonic()
        assert "web10" in machines.listed(first)["nodes_missing"]
        assert time.monotonic() - begun < NAMED_WITHIN

        def named() -> tuple[list[str], int]:
            listed = machines.listed(first)
            return listed["nodes_missing"], listed["total"]

        until(lambda: named() == (["web10"], 2), "it alone is named")
        until(
            lambda: machines.status(first)["nodes_missing"] == ["web10"], "the status is a second old at most"
        )
        begun = time.monotonic()
        for _ in range(4):
            listed = machines.listed(first)
            assert listed["total"] == 2 or listed["nodes_missing"] != ["web10"]
        kick = first.http.post(f"{CONNECTIONS}/{row['connection']}/kick", headers=first.admin)
        assert (kick.status_code, kick.json()["error"]["code"]) == (503, "node_silent")
        assert kick.json()["error"]["message"] == "node web10 does not answer just now"
        renewal = first.renew(first.mint(TokenKind.STREAM, "ann"), "nobody")
        assert (renewal.status_code, renewal.json()["error"]["code"]) == (503, "node_silent")
        assert set(samples(first, "node")["sse_app_node_up"]) == {"web2.1", "web2.2"}
        assert time.monotonic() - begun < NAMED_WITHIN, "the full wait was paid again"
        for path in ("/healthz", "/readyz"):
            assert first.http.get(path).status_code == 200
    until(lambda: machines.agree(3), "it answers again")
    assert machines.complete(last)["total"] == 3, "the kick that was answered 503 was done later"


@pytest.mark.long
def test_a_node_that_was_killed_is_named_and_its_next_process_keeps_its_number_and_begins_at_once(
    machines: Machines,
) -> None:
    first, killed = machines.sites[0], machines.servers[2]
    before = machines.rows()
    machines.sites[2].leave_all()
    killed.kill()
    until(lambda: machines.status(first)["nodes_missing"] == ["web10"], "it is named")
    killed.start()
    killed.kill()
    begun = time.monotonic()
    killed.start()
    assert time.monotonic() - begun < 30
    spread(machines, 0, 0, 1)
    until(lambda: machines.agree(1), "all are there")
    assert machines.rows() == before


@pytest.mark.slow
def test_a_node_that_ends_is_not_waited_for_nor_named(machines: Machines) -> None:
    before = machines.rows()
    assert machines.servers[2].stop() == 0
    assert "web10" not in machines.status(machines.sites[0])["nodes_missing"]
    assert machines.rows()["web10"] == (before["web10"][0], True)
    machines.servers[2].start()
    until(lambda: machines.agree(0), "it is back")
    assert machines.rows() == before


@pytest.mark.slow
def test_a_worker_that_hands_over_keeps_its_number_and_is_never_missing(machines: Machines) -> None:
    first, worker = machines.sites[2], machines.servers[0]
    ears = spread(machines, 3, 0, 0)
    before, rows = machines.rows(), machines.complete(first)["connections"]
    worker.upgrade()
    assert "web2.1" not in machines.listed(first)["nodes_missing"]
    found = machines.complete(first)
    assert found["total"] == 3
    assert [row["connection"] for row in found["connections"]] == [row["connection"] for row in rows]
    assert {(row["node"], row["adopted"]) for row in found["connections"]} == {("web2.1", True)}
    assert machines.rows() == before
    path = f"{CONNECTIONS}/{rows[0]['connection']}/kick"
    assert first.http.post(path, headers=first.admin).json() == {"kicked": 1}
    assert_ended(ears[:1], time.monotonic(), "kicked")


def test_a_second_machine_of_the_same_name_is_refused_with_a_line_that_names_it(
    machines: Machines, tmp_path: Path
) -> None:
    before = machines.rows()
    environment = clean_environment(
        SSE_APP_STATE_DIR=str(tmp_path / "state"),
        SSE_APP_EVENT_LOG=machines.url,
        SSE_APP_NODE="web10",
        SSE_APP_PORT="0",
    )
    done = run_program("serve", environment=environment)
    assert done.returncode != 0
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line]
    assert len(lines) == 1, lines
    assert "another machine is the node web10" in lines[0]
    assert "setting node" in lines[0]
    assert machines.rows() == before
    spread(machines, 0, 0, 1)
    until(lambda: machines.agree(1), "the first is there as before")


@pytest.mark.slow
def test_after_a_restart_of_the_database_all_agree_again(machines: Machines) -> None:
    spread(machines, 1, 2, 1)
    until(lambda: machines.agree(4), "all are counted")
    machines.postgres.stop()
    try:
        for site in machines.sites:
            begun = time.monotonic()
            found = machines.listed(site)
            assert time.monotonic() - begun < NAMED_WITHIN
            assert found["nodes_missing"] == [name for name in NAMES if name != own(machines, site)]
            assert {row["node"] for row in found["connections"]} == {own(machines, site)}
            assert site.http.get("/healthz").status_code == 200
    finally:
        machines.postgres.start()
    until(lambda: machines.agree(4), "all agree again")


@pytest.mark.ci
def test_a_node_makes_at_most_two_queries_a_second_of_its_own(machines: Machines) -> None:
    database = machines.url.rpartition("/")[2]

    def beats() -> int:
        ((calls,),) = machines.postgres.execute(
            "SELECT calls FROM pg_stat_user_functions WHERE funcname = 'beat'", database
        )
        return int(str(calls))

    machines.postgres.execute(f"ALTER DATABASE {database} SET track_functions = 'pl'")
    machines.postgres.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    )
    until(lambda: machines.agree(0), "all have connected again")
    until(lambda: machines.postgres.execute("SELECT 1 FROM pg_stat_user_functions", database), "it counts")
    time.sleep(1.5)  # statistics are passed on once a second
    before, begun = beats(), time.monotonic()
    time.sleep(10)
    calls, seconds = beats() - before, time.monotonic() - begun
    assert 0.5 * 3 * seconds <= calls <= 2 * 3 * (seconds + 1.5)


@pytest.mark.ci
def test_streams_are_listed_in_the_order_in_which_they_were_opened_on_whichever_machine(
    machines: Machines,
) -> None:
    token = machines.sites[0].mint(TokenKind.STREAM, "ann")
    for number in range(9):
        machines.sites[number * 2 % 3].hear(token, client_id=f"n-{number}")
        time.sleep(0.25)  # the machines' clocks are compared through the database
    for site in machines.sites:
        for sort in ("connection", "opened_at"):
            rows: list[dict[str, Any]] = []

            def are_all_listed(site: Any = site, sort: str = sort, rows: list[dict[str, Any]] = rows) -> bool:
                rows[:] = machines.listed(site, sort=sort)["connections"]
                return len(rows) == 9  # a node that is too busy to answer in time is left out

            until(are_all_listed, "all nodes answer")
            assert [row["client_id"] for row in rows] == [f"n-{number}" for number in range(9)]


@pytest.mark.long
def test_answers_that_name_nodes_are_as_described(machines: Machines) -> None:
    from tests.support.made_up_requests import SCHEMA  # see there for why it is imported so late

    first = machines.sites[0]
    path_of_kick = f"{CONNECTIONS}/{{connection}}/kick"

    def described(method: str, path: str, expected: int, at: str = "", **options: Any) -> dict[str, Any]:
        url = path.replace("{connection}", at)
        answer = httpx.request(method, f"{first.server.url}{url}", headers=first.admin, timeout=30, **options)
        assert answer.status_code == expected, answer.text
        SCHEMA[path][method].validate_response(answer)
        document: dict[str, Any] = answer.json()
        return document

    ears = spread(machines, 1, 1, 1)
    access = first.server.access_token(subject="root", admin=True)
    token = first.stream_token(access, "sse_app.admin").json()["stream_token"]
    ears.append(first.hear(token, "sse_app.admin"))
    until(
        lambda: [each.get("nodes") for each in described("GET", "/api/v1/admin/figures", 200)["figures"]],
        "there are figures",
    )
    until(lambda: described("GET", "/api/v1/sse/status", 200)["nodes_missing"] == [], "all nodes answer")
    rows = described("GET", CONNECTIONS, 200)["connections"]
    numbers = {row["node"]: row["connection"] for row in rows}
    with machines.stopped(2):
        until(lambda: described("GET", CONNECTIONS, 200)["nodes_missing"] == ["web10"], "the others answer")
        described("POST", path_of_kick, 503, numbers["web10"])
        assert described("GET", path_of_kick, 200, numbers["web2.2"])["nodes_missing"] == ["web10"]
        assert described("POST", path_of_kick, 200, numbers["web2.2"])["nodes_missing"] == ["web10"]
        revoked = described("POST", "/api/v1/admin/revocations", 201, json={"subject": "nobody"})
        assert revoked["nodes_missing"] == ["web10"]
    until(lambda: not machines.listed(first)["nodes_missing"], "it answers again")
