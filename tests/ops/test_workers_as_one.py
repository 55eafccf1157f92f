"""Several workers are one server: what belongs to all is seen, counted, ended and renewed over all, from each."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import httpx
import pytest

from sse_app.auth.tokens.issuer import TokenKind
from sse_app.cluster.base import ASK_TIMEOUT
from tests.support.one_server import CONNECTIONS, OneServer, figures, samples
from tests.support.people import PASSWORD, Site, assert_ended, bearer, claims_of, once_all_answer
from tests.support.server_process import PROGRAM, ROOT
from tests.support.waiting import DEADLINE, until
from tests.support.worker_processes import WorkerProcess, worker_processes

COUNT = 3
NAMED_WITHIN = 5 * ASK_TIMEOUT
"""Within how many seconds a worker that hangs is named: one wait and what a busy machine adds.

What must not wait in full again is asked so often that it would take longer.
"""


class Offices(OneServer):
    """The workers of one server."""

    def __init__(self, workers: list[WorkerProcess]) -> None:
        super().__init__(workers)
        self.workers = workers

    def status_of_all(self, site: Site) -> dict[str, Any]:
        """Return the status as one says it once it has found none too busy to answer in time."""
        found: dict[str, Any] = {}

        def all_have_answered() -> bool:
            found.update(self.status(site))
            return not found["workers_missing"]

        until(all_have_answered, "all answer")
        return found

    def leave(self) -> None:
        for site in self.sites:
            site.leave_all()
        for site in self.sites:
            until(lambda site=site: self.listed(site)["total"] == 0, "all streams are gone")  # type: ignore[misc]

    @contextmanager
    def stopped(self, number: int) -> Iterator[None]:
        """Let one worker hang that does not use the accounts just now: else it would keep them locked."""
        path = self.workers[number].state_dir / "accounts.db"
        with closing(sqlite3.connect(path, timeout=DEADLINE, isolation_level=None)) as accounts:
            accounts.execute("BEGIN EXCLUSIVE")
            with super().stopped(number):
                threads = Path(f"/proc/{self.workers[number].pid}/task")
                until(lambda: all(_is_stopped(thread) for thread in threads.iterdir()), "it is stopped")
                accounts.execute("ROLLBACK")
                yield


def _is_stopped(thread: Path) -> bool:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.fixture(scope="module")
def offices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offices]:
    state_dir = tmp_path_factory.mktemp("workers") / "state"
    expected = ("login_refused", "worker_silent", "refresh_reused")
    with worker_processes(COUNT, state_dir, expected=expected) as workers:
        offices = Offices(workers)
        for name in ("ann", "bob"):
            offices.sites[0].add_user(name)
        yield offices
        offices.close()


@pytest.fixture(autouse=True)
def leaving(offices: Offices) -> Iterator[None]:
    yield
    offices.leave()


# -- what is seen ------------------------------------------------------------------------------------------------


def test_the_status_counts_the_streams_of_all_and_the_events_of_the_log_once(offices: Offices) -> None:
    for number, site in enumerate(offices.sites, 1):
        for _ in range(number):
            site.hear(site.mint(TokenKind.STREAM, "ann"), "dashboard,alerts")
    before = offices.status(offices.sites[0])["channels"]["alerts"]["events_published"]
    ids = []
    for site in offices.sites:
        body = {"event": "e", "data": {}}
        answer = site.http.post("/api/v1/sse/alerts", json=body, headers=site.admin)
        ids.append(answer.raise_for_status().json()["id"])
    for site in offices.sites:
        until(lambda site=site: offices.status(site)["total_connections"] == 6, "all are counted")  # type: ignore[misc]
        until(
            lambda site=site: offices.status(site)["channels"]["alerts"]["last_event_id"] == ids[-1],  # type: ignore[misc]
            "the last event is known",
        )
        status = offices.status_of_all(site)
        assert status["channels"]["dashboard"]["connection_count"] == 6
        assert status["channels"]["alerts"]["events_published"] == before + 3
        assert status["uptime_seconds"] > 0


def test_requests_for_the_status_cost_the_other_workers_one_message_a_second(offices: Offices) -> None:
    """A stranger must not turn each request into one to each worker."""
    site = offices.sites[0]
    begun = time.monotonic()
    site.hear(site.mint(TokenKind.STREAM, "ann"))
    answers = [offices.status(site) for _ in range(200)]
    distinct = {answer["uptime_seconds"] for answer in answers}
    assert len(distinct) <= 2 + (time.monotonic() - begun), "it was asked anew for each request"


def test_the_metrics_of_all_come_in_one_scrape_each_with_its_worker(offices: Offices) -> None:
    for number, site in enumerate(offices.sites, 1):
        for _ in range(number):
            site.hear(site.mint(TokenKind.STREAM, "ann"))
    site = offices.sites[1]
    ids = [
        one.http.post("/api/v1/sse/alerts", json={"event": "e", "data": {}}, headers=one.admin).json()["id"]
        for one in offices.sites
    ]
    head = int(ids[-1].rpartition("-")[2])
    until(
        lambda: all(samples(each, "worker")["sse_app_log_head"] == {"": head} for each in offices.sites),
        "the head",
    )
    found: dict[str, dict[str, float]] = {}

    def are_all_up() -> bool:
        found.clear()
        found.update(samples(site, "worker"))
        return found["sse_app_worker_up"] == {"1": 1, "2": 1, "3": 1}

    until(are_all_up, "all answer")
    assert found["sse_app_streams"] == {"1": 1, "2": 2, "3": 3}
    assert found["sse_app_channel_streams channel=dashboard"] == {"1": 1, "2": 2, "3": 3}
    assert found["sse_app_worker_up"] == {"1": 1, "2": 1, "3": 1}
    for name in (
        "sse_app_ready",
        "sse_app_publish_seconds_count",
        "process_cpu_seconds_total",
        "sse_app_events_total",
    ):
        assert set(found[name]) == {"1", "2", "3"}, name
    # What has no worker belongs to the log.
    assert {name for name, values in found.items() if "" in values} == {"sse_app_log_head"}
    assert site.http.get("/metrics").text.count("# TYPE sse_app_streams gauge") == 1


def test_the_connections_of_all_are_listed_searched_sorted_and_paged_as_one_table(offices: Offices) -> None:
    for number in range(12):
        site = offices.sites[number % COUNT]
        site.hear(
            site.mint(TokenKind.STREAM, "ann" if number % 2 else "bob"), client_id=f"c-{11 - number:02}"
        )
    for site in offices.sites:
        everything = offices.complete(site)
        assert (everything["total"], everything["workers_missing"]) == (12, [])
        rows = everything["connections"]
        assert [row["worker"] for row in rows] == [str(1 + number % COUNT) for number in range(12)]
        numbers = {int(row["connection"]) for row in rows}
        assert len(numbers) == 12
        assert max(numbers) < 2**53
        by_id = offices.complete(site, sort="client_id")["connections"]
        assert [row["client_id"] for row in by_id] == [f"c-{number:02}" for number in range(12)]
        down = offices.complete(site, sort="client_id", order="desc")["connections"]
        assert [row["client_id"] for row in down] == [f"c-{11 - number:02}" for number in range(12)]
        pages: list[str] = []
        for offset in range(0, 15, 5):
            page = offices.complete(site, sort="client_id", offset=offset, limit=5)
            assert page["total"] == 12
            pages += [row["client_id"] for row in page["connections"]]
        assert pages == [f"c-{number:02}" for number in range(12)]
        # Equal values stay in the order in which the streams were opened, over all workers.
        of_ann = offices.complete(site, search="ANN", field="subject", sort="subject")
        assert of_ann["total"] == 6
        assert [row["client_id"] for row in of_ann["connections"]] == [
            f"c-{11 - n:02}" for n in range(1, 12, 2)
        ]
        of_two = offices.complete(site, search="2", field="worker")
        assert {row["worker"] for row in of_two["connections"]} == {"2"}
        assert of_two["total"] == 4
        by_worker = offices.complete(site, sort="worker", order="desc")["connections"]
        assert [row["worker"] for row in by_worker] == ["3"] * 4 + ["2"] * 4 + ["1"] * 4
        assert offices.complete(site, offset=10**9)["connections"] == []


# -- what is ended and renewed -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("here", "there"), list(permutations(range(COUNT), 2)))
def test_a_kick_by_number_reaches_a_stream_of_any_worker(offices: Offices, here: int, there: int) -> None:
    asked, other = offices.sites[here], offices.sites[there]
    session = other.log_in("ann")
    ears = [site.hear(session.stream, client_id="out") for site in (asked, other)]
    rest = [site.hear(site.log_in("ann").stream, client_id="stays") for site in offices.sites]
    (row,) = [
        row for row in offices.complete(asked, search="out")["connections"] if row["worker"] == str(there + 1)
    ]
    path = f"{CONNECTIONS}/{row['connection']}/kick"
    until(lambda: asked.http.get(path, headers=asked.admin).json() == {"streams": 2}, "all answer")
    answer = asked.http.post(path, json={"for": 0}, headers=asked.admin)
    since = time.monotonic()
    assert answer.status_code == 200
    assert answer.json() == {"kicked": 2} or "workers_missing" in answer.json()
    assert_ended(ears, since, "kicked")
    assert all(ear.open for ear in rest)
    assert {site.stream_status(session.stream) for site in offices.sites} == {401}
    assert asked.http.post(path, json={}, headers=asked.admin).status_code == 404
    trail = asked.http.get("/api/v1/admin/audit", headers=asked.admin).json()["entries"]
    # Each worker writes its own entries a little later: logins at another may come after the kick.
    kick = next(entry for entry in trail if entry["action"] == "kick")
    assert (kick["target"], kick["detail"][:13]) == ("ann", "client_id out")


def test_a_kicked_session_is_barred_by_every_worker_at_once(offices: Offices) -> None:
    first, last = offices.sites[0], offices.sites[-1]
    session = first.log_in("bob")
    first.hear(session.stream, client_id="barred")
    fresh = first.stream_token(session.access, "dashboard").json()["stream_token"]
    (row,) = offices.complete(last, search="barred")["connections"]
    path = f"{CONNECTIONS}/{row['connection']}/kick"
    answer = once_all_answer(lambda: last.http.post(path, headers=last.admin)).json()
    late = answer.pop("workers_missing", [])  # they find it in the store when they go on
    assert answer == {"kicked": 1} or late
    for site in offices.sites:
        if late:
            until(lambda site=site: site.stream_status(fresh) == 403, "it is barred")  # type: ignore[misc]
        assert site.stream_status(fresh) == 403
        assert site.stream_token(session.access).status_code == 403


@pytest.mark.parametrize(
    "scope",
    [
        "token_id",
        pytest.param("session", marks=pytest.mark.slow),
        "subject",
        pytest.param("all", marks=pytest.mark.slow),
    ],
)
def test_a_revocation_by_one_worker_is_in_force_on_all_when_it_is_answered(
    offices: Offices, scope: str
) -> None:
    for _ in range(10):
        session = offices.sites[0].log_in("ann")
        ears = [site.hear(session.stream) for site in offices.sites for _ in range(2)]
        claims = claims_of(session.stream)
        values: dict[str, object] = {"token_id": claims["jti"], "session": claims["sid"], "subject": "ann"}
        answer = offices.sites[1].revoke(**{scope: values.get(scope, True)})
        since = time.monotonic()
        if "workers_missing" not in answer:
            break
        offices.leave()  # one was too busy to answer in time, as the answer says
    else:
        pytest.fail("a worker never answers in time")
    assert {site.stream_status(session.stream) for site in offices.sites} == {401}
    assert answer["streams"] == 6
    assert_ended(ears, since, "revoked")
    # What is issued right afterwards, by any worker, is good on every other.
    for issuing in offices.sites:
        fresh = issuing.log_in("ann")
        assert {site.stream_status(fresh.stream) for site in offices.sites} == {200}
        assert {site.me(fresh.access) for site in offices.sites} == {200}


def test_a_logout_on_one_worker_ends_the_session_on_all(offices: Offices) -> None:
    session = offices.sites[2].log_in("bob")
    ears = [site.hear(session.stream) for site in offices.sites]
    answer = offices.sites[0].http.post("/api/v1/auth/logout", json={"refresh_token": session.refresh})
    since = time.monotonic()
    assert answer.status_code == 204, answer.text
    for site in offices.sites:
        assert site.me(session.access) == 401
        assert site.stream_status(session.stream) == 401
        assert site.try_refresh(session.refresh).status_code == 401
    assert_ended(ears, since, "revoked")


def test_what_the_commands_change_is_in_force_on_all_within_a_second(offices: Offices) -> None:
    site = offices.sites[0]
    site.add_user("carl")
    session = site.log_in("carl")
    ears = [each.hear(session.stream) for each in offices.sites]
    offices.workers[0].command("user", "disable", "carl")
    assert_ended(ears, time.monotonic(), "revoked")
    assert {each.try_login("carl").status_code for each in offices.sites} == {401}


def test_accounts_changed_at_one_worker_are_changed_on_all(offices: Offices) -> None:
    first, *others = offices.sites
    users, admin = "/api/v1/admin/users", first.admin
    body = {"name": "dora", "password": PASSWORD, "grants": {"subscribe": ["dashboard"]}}
    assert first.http.post(users, json=body, headers=admin).status_code == 201
    session = others[0].log_in("dora")
    ears = [each.hear(session.stream) for each in offices.sites]
    answer = others[1].http.patch(f"{users}/dora", json={"disabled": True}, headers=admin)
    assert answer.json()["disabled"] is True
    assert_ended(ears, time.monotonic(), "revoked")
    for each in offices.sites:
        assert each.me(session.access) == each.try_login("dora").status_code == 401
        found = each.http.get(users, params={"search": "dora"}, headers=admin).json()
        assert [user["disabled"] for user in found["users"]] == [True]


def test_an_administrator_sees_at_any_worker_who_is_on_a_channel(offices: Offices) -> None:
    for site, name in zip(offices.sites, ("ann", "bob", "ann"), strict=True):
        site.hear(site.mint(TokenKind.STREAM, name))
    for site in offices.sites:

        def asked(site: Site = site) -> httpx.Response:
            return site.http.get("/api/v1/admin/channels/dashboard/presence", headers=site.admin)

        answer = once_all_answer(asked).json()
        assert {user["sub"]: user["streams"] for user in answer["users"]} == {"ann": 2, "bob": 1}


def test_a_token_signed_with_a_new_key_is_good_on_every_worker_at_once(offices: Offices) -> None:
    worker = offices.workers[0]
    old = worker.access_token(admin=True)
    worker.command("keys", "rotate")
    minted = worker.command("token", "--kind", "access", "--subject", "root", "--admin", "--ttl", "60")
    assert {site.me(minted) for site in offices.sites} == {200}
    assert {site.me(old) for site in offices.sites} == {200}
    site = offices.sites[0]

    def rotations() -> int:
        trail = site.http.get("/api/v1/admin/audit", headers=bearer(minted)).json()["entries"]
        return [entry["action"] for entry in trail].count("key_rotation")

    # One of the command and one of the server, as with one process.
    until(lambda: rotations() == 2, "the rotation is in the audit trail")
    time.sleep(0.6)  # in which every worker has looked twice
    assert rotations() == 2


def test_a_renewal_names_a_worker_that_may_have_streams_of_the_client_too(offices: Offices) -> None:
    site = offices.sites[0]
    old, fresh = (site.mint(TokenKind.STREAM, "ann", session="s-named") for _ in range(2))
    for each in offices.sites[1:]:
        each.hear(old, client_id="two")
    with offices.stopped(2):
        until(lambda: site.renew(fresh, "two").json().get("complete") is False, "it does not answer")
        answer = site.renew(fresh, "two").json()
        answer.pop("expires_in")
        assert answer == {"renewed": 1, "complete": False, "workers_missing": ["3"]}
    answer = site.renewed(fresh, "two").json()
    assert (answer["renewed"], answer["complete"]) == (2, True)


def test_a_renewal_reaches_the_streams_of_any_worker(offices: Offices) -> None:
    site = offices.sites[0]
    session = "s-renew"
    old = site.mint(TokenKind.STREAM, "ann", session=session, ttl=12)
    fresh = site.mint(TokenKind.STREAM, "ann", session=session)
    ears = [each.hear(old, client_id="tab") for each in offices.sites[1:]]
    ears.append(offices.sites[2].hear(old, client_id="tab"))
    rest = offices.sites[1].hear(old, client_id="other")
    answer = site.renewed(fresh, "tab")
    assert (answer.status_code, answer.json()["renewed"]) == (200, 3), answer.text
    until(lambda: not rest.open, "the stream that was not renewed ends")
    assert rest.farewell == "token_expired"
    time.sleep(0.5)
    assert all(ear.open for ear in ears)
    assert site.renewed(fresh, "nobody").status_code == 404
    assert site.renewed(site.mint(TokenKind.STREAM, "ann", session="another"), "tab").status_code == 404
    assert site.renewed(site.mint(TokenKind.STREAM, "bob", session=session), "tab").status_code == 404


def test_a_renewal_that_lacks_a_channel_of_a_stream_anywhere_renews_none(offices: Offices) -> None:
    site = offices.sites[0]
    session = site.log_in("ann")
    narrow = site.stream_token(session.access, "dashboard").json()["stream_token"]
    offices.sites[1].hear(session.stream, "dashboard", client_id="tab")
    offices.sites[2].hear(session.stream, "dashboard,alerts", client_id="tab")
    before = [row["expires_at"] for row in offices.complete(site, search="tab")["connections"]]
    assert site.renewed(narrow, "tab").status_code == 403
    assert [row["expires_at"] for row in offices.complete(site, search="tab")["connections"]] == before


# -- what is stored ----------------------------------------------------------------------------------------------


def test_a_repeat_with_an_idempotency_key_on_another_worker_answers_as_the_first(offices: Offices) -> None:
    token = offices.workers[0].access_token()
    headers = {**bearer(token), "Idempotency-Key": "one-and-the-same"}
    body = {"event": "e", "data": {"n": 1}}
    answers = [site.http.post("/api/v1/sse/alerts", json=body, headers=headers) for site in offices.sites]
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = {"event": "e", "data": {"n": 2}}
    assert {
        site.http.post("/api/v1/sse/alerts", json=other, headers=headers).status_code
        for site in offices.sites
    } == {422}


def test_a_refresh_on_one_worker_and_its_repeat_on_another_bring_the_same_next_token(
    offices: Offices,
) -> None:
    session = offices.sites[0].log_in("ann")
    following = [site.refresh(session.refresh).refresh for site in offices.sites]
    assert len(set(following)) == 1
    assert offices.sites[1].refresh(following[0]).refresh != following[0]
    # Now the first is spent for good: on every worker it ends the session.
    assert offices.sites[2].try_refresh(session.refresh).status_code == 401
    assert {site.stream_status(session.stream) for site in offices.sites} == {401}


def test_a_login_on_one_worker_opens_streams_on_the_others_at_once(offices: Offices) -> None:
    for issuing in offices.sites:
        session = issuing.log_in("bob")
        for site in offices.sites:
            assert site.me(session.access) == 200
            assert site.stream_status(session.stream) == 200
    changed = offices.workers[0].command("user", "passwd", "bob", "--password-stdin", input=PASSWORD + "\n")
    assert "bob" in changed or changed == ""
    for site in offices.sites:
        fresh = site.log_in("bob")
        assert {each.stream_status(fresh.stream) for each in offices.sites} == {200}


@pytest.mark.long
def test_the_commands_work_against_workers_as_against_one_process(offices: Offices) -> None:
    last = offices.workers[-1]
    with subprocess.Popen(
        [*PROGRAM, "listen", "alerts"],
        cwd=ROOT,
        env=last.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as listening:
        try:
            until(lambda: offices.status(offices.sites[0])["total_connections"] == 1, "it listens")
            ids = [
                worker.command("publish", "alerts", "told", json.dumps({"n": worker.number}))
                for worker in offices.workers
            ]
            assert listening.stdout is not None
            heard = [listening.stdout.readline() for _ in ids]
            assert all(f'"n":{n}' in line.replace(" ", "") for n, line in enumerate(heard, 1)), heard
        finally:
            listening.kill()
    assert len(set(ids)) == COUNT
    session = offices.sites[0].log_in("ann")
    ears = [site.hear(session.stream) for site in offices.sites]
    offices.workers[1].command("revoke", "--session", session.id)
    assert_ended(ears, time.monotonic(), "revoked")
    assert "revocation" in offices.workers[2].command("audit", "--limit", "5")
    assert offices.workers[0].command("check-config")


# -- workers that hang or die ------------------------------------------------------------------------------------


def test_a_worker_that_hangs_is_named_everywhere_and_nothing_else_waits(offices: Offices) -> None:
    first, last = offices.sites[0], offices.sites[2]
    ears = [site.hear(site.log_in("ann").stream, client_id="here") for site in offices.sites]
    (row,) = [row for row in offices.complete(first)["connections"] if row["worker"] == "2"]
    with offices.stopped(1):
        begun = time.monotonic()
        offices.status(first)
        assert time.monotonic() - begun < NAMED_WITHIN

        def named() -> tuple[list[str], int]:
            status = offices.status(first)
            return status["workers_missing"], status["total_connections"]

        def in_metrics() -> tuple[dict[str, float], set[str]]:
            found = samples(first, "worker")
            return found["sse_app_worker_up"], set(found["sse_app_streams"])

        until(lambda: named() == (["2"], 2), "it alone is named")
        until(lambda: in_metrics() == ({"1": 1, "2": 0, "3": 1}, {"1", "3"}), "as in the metrics")
        begun = time.monotonic()
        for _ in range(4):
            listed = offices.listed(first)
            assert listed["total"] == 2 or listed["workers_missing"] != ["2"]
        kick = first.http.post(f"{CONNECTIONS}/{row['connection']}/kick", headers=first.admin)
        assert (kick.status_code, kick.json()["error"]["code"]) == (503, "worker_silent")
        assert "Retry-After" in kick.headers
        renewal = first.renew(first.mint(TokenKind.STREAM, "ann"), "nobody")
        assert (renewal.status_code, renewal.json()["error"]["code"]) == (503, "worker_silent")
        assert time.monotonic() - begun < NAMED_WITHIN, "the full wait was paid again"
        for path in ("/healthz", "/readyz"):
            assert first.http.get(path).status_code == 200
        # A revocation is in force on the others, and on this one as soon as it goes on.
        begun = time.monotonic()
        revoked = last.http.post("/api/v1/admin/revocations", json={"subject": "ann"}, headers=last.admin)
        assert time.monotonic() - begun < NAMED_WITHIN
        told = revoked.json()
        assert (told["scope"], told["value"]) == ("subject", "ann")
        assert "2" in told["workers_missing"]
        assert told["streams"] == 2 or told["workers_missing"] != ["2"]
        assert_ended([ears[0], ears[2]], time.monotonic(), "revoked")
    since = time.monotonic()
    assert_ended([ears[1]], since, "revoked")
    until(lambda: offices.status(first)["workers_missing"] == [], "it answers again")


def test_what_a_stranger_sends_makes_no_worker_ask_the_others(offices: Offices) -> None:
    first, worker = offices.sites[0], offices.workers[0]

    def asked_in_vain() -> int:
        return sum((line["event"], line.get("peer")) == ("worker_silent", "2") for line in worker.log_lines())

    before = asked_in_vain()
    with offices.stopped(1):
        for _ in range(3):
            assert first.try_refresh("no such token").status_code == 401
            assert first.http.post("/api/v1/auth/logout", json={"refresh_token": "none"}).status_code == 401
            assert first.renew("no.such.token", "tab").status_code == 401
            assert first.http.get(f"{CONNECTIONS}?search=x").status_code == 401
            assert first.http.post(f"{CONNECTIONS}/1/kick").status_code == 401
            assert first.http.get("/readyz").status_code == 200
        until(lambda: offices.status(first)["workers_missing"] == ["2"], "the status has asked it")
        until(lambda: asked_in_vain() > before, "that is in the log")
        assert asked_in_vain() == before + 1
    until(lambda: offices.status(first)["workers_missing"] == [], "it answers again")


@pytest.mark.long
def test_a_worker_that_is_killed_is_named_until_it_is_back(offices: Offices) -> None:
    first, killed = offices.sites[0], offices.workers[2]
    offices.sites[2].leave_all()
    killed.kill()
    until(lambda: offices.status(first)["workers_missing"] == ["3"], "it is named")
    assert samples(first, "worker")["sse_app_worker_up"]["3"] == 0
    begun = time.monotonic()
    for _ in range(6):
        assert "3" in offices.listed(first)["workers_missing"]
    assert time.monotonic() - begun < NAMED_WITHIN
    killed.start()
    offices.sites[2].hear(offices.sites[2].mint(TokenKind.STREAM, "ann"), client_id="back")
    until(lambda: offices.listed(first, search="back")["total"] == 1, "its streams are listed")
    until(lambda: offices.status(first)["workers_missing"] == [], "it is there again")


# -- live figures ------------------------------------------------------------------------------------------------


def test_the_live_figures_are_those_of_all_workers_wherever_they_are_read(offices: Offices) -> None:
    for number, site in enumerate(offices.sites, 1):
        for _ in range(number):
            site.hear(site.mint(TokenKind.STREAM, "ann"))
    watching = []
    for site in offices.sites[:2]:
        access = offices.workers[0].access_token(subject="root", admin=True)
        token = site.stream_token(access, "sse_app.admin").json()["stream_token"]
        watching.append(site.hear(token, "sse_app.admin"))
    for ear in watching:
        until(lambda ear=ear: figures(ear) and figures(ear)[-1]["streams"] == 8, "all streams are counted")  # type: ignore[misc]
    site = offices.sites[2]

    def whole() -> dict[str, Any]:
        """Return the last figures in which no worker is missing."""
        return next(each for each in reversed(figures(watching[0])) if not each["workers_missing"])

    def are_counted_once() -> bool:
        """Publish five; where a look came late on a busy machine the next one shows a higher rate."""
        seen, before = len(figures(watching[0])), whole()["deliveries"]
        for _ in range(5):
            site.http.post("/api/v1/sse/dashboard", json={"event": "e", "data": {}}, headers=site.admin)
        for ear in watching:
            until(lambda ear=ear: figures(ear)[-1]["deliveries"] >= before + 30, "all deliveries are counted")  # type: ignore[misc]
        until(lambda: whole()["deliveries"] >= before + 30, "all have told")
        assert whole()["deliveries"] == before + 30
        return all(each["publishes_per_second"] <= 6 for each in figures(watching[0])[seen:])

    until(are_counted_once, "each event is counted once")
    last = whole()
    assert [each["worker"] for each in last["workers"]] == ["1", "2", "3"]
    assert [each["streams"] for each in last["workers"]] == [2, 3, 3]
    assert last["workers_missing"] == []
    assert (last["users"], last["addresses"]) == (2, 1)  # each once, on however many workers
    assert {row["channel"]: row["streams"] for row in last["channels"]}["dashboard"] == 6
    # A worker that no administrator watches has them too, for a page that comes back to it.
    kept: list[dict[str, Any]] = []

    def are_whole() -> bool:
        kept[:] = site.http.get("/api/v1/admin/figures", headers=site.admin).json()["figures"]
        return bool(kept) and not kept[-1]["workers_missing"]

    until(are_whole, "all have told it")
    assert kept[-1]["streams"] == 8
    identities = [{(each["started_at"], each["number"]) for each in figures(ear)} for ear in watching]
    assert len(identities[0] & identities[1]) >= min(map(len, identities)) - 2, "one second, two names"
    with offices.stopped(2):
        until(
            lambda: any(
                (each["workers_missing"], each["streams"]) == (["3"], 5) for each in figures(watching[0])
            ),
            "it is named",
        )
    until(lambda: figures(watching[0])[-1]["workers_missing"] == [], "it is there again")


def test_a_worker_whose_process_is_replaced_keeps_its_streams_and_is_never_missing(offices: Offices) -> None:
    first, worker = offices.sites[0], offices.workers[1]
    session = "s-upgrade"
    old = first.mint(TokenKind.STREAM, "ann", session=session, ttl=60)
    ears = [offices.sites[1].hear(old, client_id="kept") for _ in range(3)]
    before = offices.complete(first, search="kept")["connections"]
    worker.upgrade()
    assert "2" not in offices.listed(first, search="kept")["workers_missing"]
    found = offices.complete(first, search="kept")
    assert found["total"] == 3
    rows = found["connections"]
    assert [row["connection"] for row in rows] == [row["connection"] for row in before]
    assert {(row["worker"], row["adopted"]) for row in rows} == {("2", True)}
    assert first.renewed(first.mint(TokenKind.STREAM, "ann", session=session), "kept").json()["renewed"] == 3
    offices.sites[1].hear(first.mint(TokenKind.STREAM, "ann"), client_id="next")
    numbers = [int(row["connection"]) for row in offices.complete(first)["connections"]]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == 4
    path = f"{CONNECTIONS}/{rows[0]['connection']}/kick"
    answer = once_all_answer(lambda: first.http.post(path, headers=first.admin)).json()
    assert answer == {"kicked": 3} or "workers_missing" in answer
    assert_ended(ears, time.monotonic(), "kicked")


def test_log_lines_of_the_channel_are_few_and_without_errors(offices: Offices) -> None:
    lines = [line for worker in offices.workers for line in worker.log_lines()]
    assert all(line.get("worker") in ("1", "2", "3", 1, 2, 3) for line in lines), json.dumps(lines[:3])
    assert not [line for line in lines if line["level"] == "error"]
