"""Users who log in and out in three tabs, in every order: each tab gets what its user may read, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Literal, NamedTuple

import httpx
import pytest

from tests.support.browser import Chrome, ClientPage, Start, publish, wait_for_connections
from tests.support.browser_logins import PASSWORD, log_in, open_tab, reasons, start
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.browser

Place = Literal["cookie", "memory"]
State = tuple[str, str, str]
"""Who is logged in in each of the tabs, or nobody."""

USERS = ("ann", "bob")
NOBODY: State = ("", "", "")


class Step(NamedTuple):
    """In one of the tabs a user logs in; or, where there is no name, the one who is there logs out."""

    tab: int
    user: str


def after(state: State, step: Step, place: Place) -> State:
    """Return who is logged in afterwards: a logout is one in all tabs, and there is one cookie for all of them."""
    before = state[step.tab]

    def then(tab: int, user: str) -> str:
        if tab == step.tab:
            return step.user
        if not step.user:
            return "" if user == before else user
        return "" if place == "cookie" and user != step.user else user

    one, two, three = (then(tab, user) for tab, user in enumerate(state))
    return one, two, three


def steps_from(state: State) -> list[Step]:
    """Return all that can be done."""
    return [Step(tab, user) for tab, user in product(range(3), ("", *USERS)) if user != state[tab]]


def walk(place: Place, wanted: int | None = None) -> Iterator[Step]:
    """Return steps that do all that can be done in every state; or so many, none twice while others are left."""
    done: set[tuple[State, Step]] = set()
    state, count = NOBODY, 0
    chance = random.Random(17)
    while count != wanted:
        path = _to_what_is_new(state, done, place, chance)
        if path is None:
            return
        for step in path[: None if wanted is None else wanted - count]:
            done.add((state, step))
            state = after(state, step, place)
            count += 1
            yield step


def _to_what_is_new(
    state: State, done: set[tuple[State, Step]], place: Place, chance: random.Random
) -> list[Step] | None:
    """Return the fewest steps that end with one not done yet."""
    seen, ahead = {state}, [(state, list[Step]())]
    for at, path in ahead:
        choices = steps_from(at)
        chance.shuffle(choices)
        for step in choices:
            if (at, step) not in done:
                return [*path, step]
        for step in choices:
            then = after(at, step, place)
            if then not in seen:
                seen.add(then)
                ahead.append((then, [*path, step]))
    return None


def take(tabs: list[ClientPage], step: Step) -> None:
    """Log in or out as the page of an application does."""
    tab = tabs[step.tab]
    if not step.user:
        tab.run("session.logout()")
        return
    tab.run("window.client?.close()")
    log_in(tab, step.user)
    tab.run("log.filter((entry) => entry.kind === 'open').forEach((entry) => (entry.kind = 'opened'))")
    tab.run(f"listen(['alerts', 'user.{step.user}'])")
    tab.opened()


def follow(steps: Iterable[Step], place: Place, chrome: Chrome, server: ServerProcess) -> None:
    """Take the steps, and publish after each; at the end compare what came with what should have come."""
    host = "localhost" if place == "cookie" else "127.0.0.1"
    tabs = [open_tab(chrome, server, host) for _ in range(3)]
    state = NOBODY
    expected: list[list[str]] = [[], [], []]
    taken = 0
    with server.publisher() as publisher:
        for step in steps:
            take(tabs, step)
            state = after(state, step, place)
            taken += 1
            for tab, user in zip(tabs, state, strict=True):
                tab.wait(f"session.username === '{user}'")
            own = {user: publish(publisher, 2, channel=f"user.{user}") for user in USERS}
            alerts = publish(publisher, 1, channel="alerts")
            for tab, user, ids in zip(tabs, state, expected, strict=True):
                if user:
                    ids += [*own[user], *alerts]
                    tab.has(alerts[-1])
            wait_for_connections(server, len(set(state) - {""}))
    for tab, ids in zip(tabs, expected, strict=True):
        assert tab.ids() == ids, taken
        assert tab.noted("reset") == []
        assert set(reasons(tab)) <= {"logout", "user"}


PLACES: list[Place] = ["cookie", "memory"]

mostly_with_a_cookie = pytest.mark.parametrize(
    "place", ["cookie", pytest.param("memory", marks=pytest.mark.long)]
)


@pytest.mark.long
@mostly_with_a_cookie
def test_whoever_logs_in_and_out_in_three_tabs_each_gets_what_its_user_may_read_and_nothing_else(
    place: Place, chrome: Chrome, serve: Start
) -> None:
    follow(walk(place, 20), place, chrome, start(serve))


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
def test_the_same_in_every_order(place: Place, chrome: Chrome, serve: Start) -> None:
    follow(walk(place), place, chrome, start(serve))


@pytest.mark.long
@mostly_with_a_cookie
def test_a_client_that_stays_goes_on_as_the_next_user_where_it_was_and_hears_nothing_in_between(
    place: Place, chrome: Chrome, serve: Start
) -> None:
    server = start(serve)
    host = "localhost" if place == "cookie" else "127.0.0.1"
    tabs = [open_tab(chrome, server, host) for _ in range(3)]
    state = NOBODY
    begun: dict[int, int] = {}
    with server.publisher() as publisher:
        ids: list[str] = []
        for step in [*walk(place, 12), *(Step(tab, "ann") for tab in range(3))]:
            if step.user == state[step.tab]:
                continue
            tab = tabs[step.tab]
            if step.user:
                log_in(tab, step.user)
                tab.run("window.client ? client.readyState === 2 && client.connect() : listen()")
                tab.wait("client.readyState === 1")
                begun.setdefault(step.tab, len(ids))
            else:
                tab.run("session.logout()")
            state = after(state, step, place)
            for each, user in zip(tabs, state, strict=True):
                each.wait(f"session.username === '{user}'")
            frozen = [tab.ids() for tab in tabs]
            ids += publish(publisher, 2, channel="alerts")
            for number, (each, user) in enumerate(zip(tabs, state, strict=True)):
                if user:
                    each.has(ids[-1])
                    assert each.ids() == ids[begun[number] :]
                else:
                    assert each.ids() == frozen[number]
    for number, each in enumerate(tabs):
        if state[number]:
            assert each.ids() == ids[begun[number] :]
        assert each.noted("reset") == []


@pytest.mark.slow
def test_a_kick_of_a_stream_ends_all_tabs_that_share_it_also_those_with_a_login_of_their_own(
    chrome: Chrome, serve: Start
) -> None:
    server = start(serve)
    tabs = [open_tab(chrome, server, "127.0.0.1", "ann") for _ in range(3)]
    bob = open_tab(chrome, server, "127.0.0.1", "bob")
    for tab in (*tabs, bob):
        tab.run("listen()")
        tab.opened()
    headers = {"Authorization": f"Bearer {server.access_token(admin=True)}"}
    with httpx.Client(base_url=f"{server.url}/api/v1/admin", headers=headers) as admin:
        found = [row for row in admin.get("/connections").json()["connections"] if row["subject"] == "ann"]
        assert len(found) == 1
        admin.post(f"/connections/{found[0]['connection']}/kick").raise_for_status()
    for tab in tabs:
        tab.wait("log.some((entry) => entry.kind === 'close')")
        assert [entry["reason"] for entry in tab.noted("close")] == ["kicked"]
        assert reasons(tab) == []
    wait_for_connections(server, 1)
    assert bob.noted("close") == []


ROUNDS = [pytest.param(4, id="a few times"), pytest.param(60, id="many times", marks=pytest.mark.long)]

ACT = f"""window.pending = 0;
window.act = async (user, ms) => {{
    pending += 1;
    await new Promise((resolve) => setTimeout(resolve, ms));
    if (!user) await session.logout();
    else {{
        await session.login(user, "{PASSWORD}");
        window.client?.close();
        if (session.username) listen(["alerts", `user.${{session.username}}`]);
    }}
    pending -= 1;
}};"""

SETTLED = "!pending && (window.client?.readyState ?? 2) === (session.username ? 1 : 2)"


@pytest.mark.long
@mostly_with_a_cookie
@pytest.mark.parametrize("rounds", ROUNDS)
def test_users_who_log_in_and_out_in_three_tabs_at_the_same_moment_get_what_they_may_read_afterwards(
    rounds: int, place: Place, chrome: Chrome, serve: Start
) -> None:
    server = start(serve, AUTH__ACCESS_LIFETIME=6, AUTH__STREAM_LIFETIME=3)
    tabs = [open_tab(chrome, server, "localhost" if place == "cookie" else "127.0.0.1") for _ in range(3)]
    for tab in tabs:
        tab.run(ACT)
    chance = random.Random(rounds)
    with server.publisher() as publisher:
        for _ in range(rounds):
            for tab in tabs:
                tab.run(f"void act('{chance.choice(['', *USERS])}', {chance.choice([0, 5, 40, 200])})")
            for tab in [*tabs, *tabs]:  # what one does may end what another has
                tab.wait(SETTLED)
            users = [tab.run("session.username") for tab in tabs]
            before = [tab.ids() for tab in tabs]
            own = {user: publish(publisher, 2, channel=f"user.{user}") for user in USERS}
            alerts = publish(publisher, 1, channel="alerts")
            for tab, user, ids in zip(tabs, users, before, strict=True):
                if user:
                    tab.has(alerts[-1])
                assert tab.ids() == ids + ([*own[user], *alerts] if user else [])
            wait_for_connections(server, len({*users} - {""}))
    assert {entry["reason"] for tab in tabs for entry in tab.noted("ended")} <= {"logout", "user"}
