"""Views of an application that come and go on one stream, with the real Vue, in a real Chromium."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.support.browser import Chrome, ClientPage, Start, connections, log_of, wait_for_connections
from tests.support.browser_logins import PASSWORD, log_in
from tests.support.scripted_server import HOURS, Answer, ScriptedServer, connected, frame
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

pytestmark = [pytest.mark.browser, pytest.mark.node]

COMPOSABLES = {
    "dashboard": "useDashboardSSE",
    "alerts": "useAlertsSSE",
    "training": "useTrainingSSE",
    "backtest": "useBacktestSSE",
}
TYPES = {
    "dashboard": "dashboard_update",
    "alerts": "risk_alert",
    "training": "training_progress",
    "backtest": "backtest_progress",
}


def flat(channel: str, n: int) -> dict[str, Any]:
    """Return what the server's own examples publish on a channel."""
    data: dict[str, dict[str, Any]] = {
        "dashboard": {"update_type": "metrics", "data": {"total_value": n}},
        "alerts": {"severity": "high", "message": f"alert {n}"},
        "training": {"task_id": f"t{n}", "progress": n, "status": "running", "metrics": {"loss": n}},
        "backtest": {
            "backtest_id": f"b{n}",
            "progress": n,
            "message": "on",
            "current_date": "2026-01-31",
            "results": {"sharpe_ratio": n},
        },
    }
    return data[channel]


def say(publisher: httpx.Client, channel: str, data: dict[str, Any], type: str = "") -> str:
    """Publish one event, and return its id."""
    answer = publisher.post(f"/api/v1/sse/{channel}", json={"event": type or TYPES[channel], "data": data})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def open_views(chrome: Chrome, server: ServerProcess, **given: Any) -> ClientPage:
    """Open a page in which tests mount views."""
    tab = chrome.open(server, file="views.html", **given)
    tab.wait("window.ready")
    return tab


def mount(tab: ClientPage, channel: str, *args: str, key: str = "") -> None:
    """Mount a view of a channel, and wait until it is connected."""
    given = "".join(f", {arg}" for arg in args)
    tab.run(f"mount('{key or channel}', '{COMPOSABLES[channel]}'{given})")
    tab.wait(f"views.{key or channel}.isConnected.value")


def shown(tab: ClientPage, key: str, *names: str) -> list[Any]:
    """Return what a view shows."""
    return list(tab.run(f"{list(names)}.map((name) => views.{key}[name].value)"))


@contextmanager
def publishing(server: ServerProcess) -> Iterator[None]:
    """Publish on all four channels meanwhile."""
    over = threading.Event()

    def run() -> None:
        with server.publisher() as publisher:
            n = 0
            while not over.wait(0.02):
                for channel in COMPOSABLES:
                    say(publisher, channel, flat(channel, n))
                n += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    "wrapped",
    [pytest.param(False, marks=pytest.mark.slow), True],
    ids=["flat", "wrapped as by the service before"],
)
def test_four_views_move_on_one_connection_by_the_names_they_know(
    wrapped: bool, chrome: Chrome, serve: Start, built: str
) -> None:
    server = serve()
    tab = open_views(chrome, server)
    for channel, name in COMPOSABLES.items():
        tab.run(f"mount('{channel}', '{name}')")
    for channel in COMPOSABLES:
        tab.wait(f"views.{channel}.isConnected.value")
    assert connections(server) == 1
    assert [shown(tab, channel, "isConnected", "error") for channel in COMPOSABLES] == [[True, None]] * 4
    with server.publisher() as publisher:
        for channel in COMPOSABLES:
            data = flat(channel, 7)
            say(publisher, channel, {"type": TYPES[channel], "data": data} if wrapped else data)
    tab.wait("views.backtest.progress.value === 7")
    assert shown(tab, "dashboard", "metrics", "updateType") == [{"total_value": 7}, "metrics"]
    assert tab.run("views.dashboard.lastUpdate.value instanceof Date")
    assert tab.run("views.alerts.alerts.value.map((alert) => alert.message)") == ["alert 7"]
    assert tab.run("[views.alerts.latestAlert.value.message, views.alerts.unreadCount.value]") == [
        "alert 7",
        1,
    ]
    tab.run("views.alerts.markAllAsRead(), views.alerts.latestAlert.value.read")
    assert tab.run("[views.alerts.latestAlert.value.read, views.alerts.unreadCount.value]") == [True, 0]
    tab.run("views.alerts.clearAlerts()")
    assert shown(tab, "alerts", "alerts", "latestAlert") == [[], None]
    run = ("taskId", "progress", "status", "message", "metrics")
    assert shown(tab, "training", *run) == ["t7", 7, "running", "", {"loss": 7}]
    names = (*run, "currentDate", "results")
    assert shown(tab, "backtest", *names) == ["b7", 7, "", "on", {}, "2026-01-31", {"sharpe_ratio": 7}]


@pytest.mark.slow
def test_views_come_and_go_without_a_loss_and_nothing_comes_twice(
    chrome: Chrome, serve: Start, built: str
) -> None:
    server = serve()
    tab = open_views(chrome, server)
    mount(tab, "dashboard")
    with publishing(server):
        for times in range(3):
            for channel in ("alerts", "training", "backtest"):
                mount(tab, channel, key=f"{channel}{times}")
                tab.wait(f"views.{channel}{times}.ids.length >= 3")
            assert connections(server) == 1
            for channel in ("training", "alerts", "backtest"):
                tab.run(f"views.{channel}{times}.app.unmount()")
    with server.publisher() as publisher:
        last = say(publisher, "dashboard", flat("dashboard", 0))
        tab.wait(f"views.dashboard.ids.at(-1).endsWith('{last}')")
        logs = {channel: [f"{channel} {id}" for id in log_of(publisher, channel)] for channel in COMPOSABLES}
    seen: dict[str, list[str]] = tab.run(
        "Object.fromEntries(Object.entries(views).map(([key, { ids }]) => [key, ids]))"
    )
    for key, ids in seen.items():
        log = logs[key.rstrip("0123456789")]
        begin = log.index(ids[0])
        assert ids == log[begin : begin + len(ids)], key
    assert len(seen) == 10
    assert seen["dashboard"][-1] == logs["dashboard"][-1]
    assert connections(server) == 1
    tab.run("views.dashboard.app.unmount()")
    wait_for_connections(server, 0)


def test_a_view_that_comes_later_begins_with_what_is_new(chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    tab = open_views(chrome, server)
    mount(tab, "dashboard")
    with server.publisher() as publisher:
        say(publisher, "dashboard", flat("dashboard", 1))
        for n in range(5):
            say(publisher, "alerts", flat("alerts", n))
        mount(tab, "alerts")
        say(publisher, "alerts", flat("alerts", 5))
        tab.wait("views.alerts.alerts.value.length > 0")
        assert [alert["message"] for alert in tab.run("views.alerts.alerts.value")] == ["alert 5"]
        tab.run("views.alerts.disconnect()")
        assert shown(tab, "alerts", "isConnected") == [False]
        say(publisher, "alerts", flat("alerts", 6))
        say(publisher, "dashboard", flat("dashboard", 2))
        tab.wait("views.dashboard.metrics.value.total_value === 2")
        tab.run("views.alerts.connect()")
        tab.wait("views.alerts.isConnected.value")
        say(publisher, "alerts", flat("alerts", 7))
        tab.wait("views.alerts.alerts.value.length > 1")
    assert [alert["message"] for alert in tab.run("views.alerts.alerts.value")] == ["alert 7", "alert 5"]
    assert connections(server) == 1


@pytest.mark.parametrize(
    "first",
    [pytest.param(True, marks=pytest.mark.slow), False],
    ids=["opened at once", "one after the other"],
)
def test_a_view_that_is_refused_ends_alone(first: bool, chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    tab = open_views(chrome, server, access=[server.access_token(subscribe="dashboard,alerts")])
    mounts = [f"mount('{channel}', '{name}')" for channel, name in COMPOSABLES.items()]
    for script in ["; ".join(mounts)] if first else mounts:
        tab.run(script)
    tab.wait("views.dashboard.isConnected.value && views.alerts.isConnected.value")
    tab.wait("views.training.error.value && views.backtest.error.value")
    with server.publisher() as publisher:
        say(publisher, "dashboard", flat("dashboard", 1))
        say(publisher, "alerts", flat("alerts", 2))
    tab.wait("views.dashboard.metrics.value.total_value === 1 && views.alerts.alerts.value.length === 1")
    assert [shown(tab, key, "isConnected") for key in COMPOSABLES] == [[True], [True], [False], [False]]
    assert tab.run("views.training.error.value.status") == 403
    assert connections(server) == 1
    # Who logs in as another user configures again: the views go on as that one.
    tab.run(f"access = '{server.access_token(subject='other')}'; configure()")
    tab.wait("Object.values(views).every((view) => view.isConnected.value)")
    assert connections(server) == 1


def test_a_view_of_one_run_leaves_out_the_others(chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    tab = open_views(chrome, server)
    tab.run("window.wanted = vue.ref(null); window.heard = []")
    mount(tab, "training", "'t1'", key="text")
    mount(tab, "training", "wanted", key="ref")
    mount(tab, "training", "{ taskId: 't2', onUpdate: ({ progress }) => heard.push(progress) }", key="option")
    mount(tab, "training", "() => 't3'", key="getter")
    with server.publisher() as publisher:
        for n in (1, 2, 3):
            say(publisher, "training", {"type": "training_progress", "data": flat("training", n)})
        tab.wait("views.getter.progress.value === 3")
        names = ("text", "ref", "option", "getter")
        assert [shown(tab, key, "taskId") for key in names] == [["t1"], ["t3"], ["t2"], ["t3"]]
        tab.run("wanted.value = 't9'")
        tab.wait("views.ref.taskId.value === ''")
        say(publisher, "training", flat("training", 8))
        say(publisher, "training", flat("training", 9))
        tab.wait("views.ref.progress.value === 9")
        hear = "({ task_id, data }) => heard.push(task_id, data.progress)"
        tab.run(f"views.text.addEventListener('training_progress', {hear})")
        say(publisher, "training", flat("training", 4))
        tab.wait("heard.length === 3")
    assert tab.run("heard") == [2, "t4", 4]
    assert connections(server) == 1


def test_a_reset_of_a_channel_that_came_later_is_told_once_the_stream_was_lost(
    chrome: Chrome, script: ScriptedServer, built: str
) -> None:
    """At first it is about events from before the view was there; later about those that it misses."""

    def lost(reason: str) -> str:
        return connected() + frame("reset", {"channel": "alerts", "reason": reason})

    script.answers = [
        Answer(body=connected(), hold=HOURS),
        Answer(body=connected(), hold=HOURS),  # asked where the channel stands
        Answer(body=lost("before")),
        Answer(body=lost("after"), hold=HOURS),
    ]
    tab = chrome.open(script.url, file="views.html", access=["access"])
    tab.wait("window.ready")
    tab.run("configure({ token: 'stream', reconnectDelay: 50 })")
    mount(tab, "dashboard")
    tab.run("window.note = { onReset: ({ reason }) => log.push({ kind: 'reset', reason }) }, 0")
    tab.run("mount('alerts', 'useAlertsSSE', note)")
    tab.wait("log.length > 0")
    assert [entry["reason"] for entry in tab.noted("reset")] == ["after"]
    assert [request.path.rpartition("/")[2] for request in script.streams()] == [
        "dashboard",
        "alerts",
        "dashboard,alerts",
        "dashboard,alerts",
    ]


def test_a_channel_that_comes_later_is_carried_also_without_auto_connect(
    chrome: Chrome, serve: Start, built: str
) -> None:
    server = serve()
    tab = open_views(chrome, server)
    tab.run("window.channels = vue.ref(['dashboard'])")
    tab.run("mount('one', 'useSSE', '/api/v1/sse', { channels, autoConnect: false }); views.one.connect()")
    tab.wait("views.one.isConnected.value")
    tab.run("channels.value = ['dashboard', 'alerts']")
    tab.wait("views.one.connectionCount.value === 2")
    with server.publisher() as publisher:
        id = say(publisher, "alerts", flat("alerts", 1))
    tab.wait("views.one.ids.length > 0")
    assert tab.run("views.one.ids") == [f"alerts {id}"]


@pytest.mark.slow
def test_a_view_that_fails_disturbs_no_other(chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    tab = open_views(chrome, server)
    for channel, name in COMPOSABLES.items():
        fails = (
            "{ onUpdate() { throw new Error('of the view') }, onOpen() { throw new Error('of the view') } }"
        )
        tab.run(f"mount('{channel}', '{name}', {fails})")
    tab.wait("Object.values(views).every((view) => view.isConnected.value)")
    with server.publisher() as publisher:
        for n in range(3):
            for channel in COMPOSABLES:
                say(publisher, channel, flat(channel, n))
    tab.wait("Object.values(views).every((view) => view.ids.length === 3 || !view.ids.length)")
    tab.wait("views.backtest.progress.value === 2 && views.alerts.alerts.value.length === 3")
    until(lambda: len(chrome.trouble) == 16, "each error is reported as the page's own")
    assert {text.rpartition(": ")[2].splitlines()[0] for text in chrome.trouble} == {"of the view"}
    chrome.trouble.clear()


@pytest.mark.slow
def test_views_that_are_there_before_a_login_wait_for_it(chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    server.add_user("ann", PASSWORD, subscribe="alerts,training")
    tab = open_views(chrome, server)
    tab.run("configure({ token: session })")
    tab.run("mount('alerts', 'useAlertsSSE'); mount('own', 'useSSE', '/api/v1/sse/training')")
    tab.wait("views.own.status.value === 'connecting'")
    tab.page.wait_for_timeout(200)
    assert shown(tab, "alerts", "isConnected", "error") == [False, None]
    assert shown(tab, "own", "status", "error") == ["connecting", None]
    log_in(tab, "ann")
    tab.wait("views.alerts.isConnected.value && views.own.isConnected.value")
    with server.publisher() as publisher:
        tab.run("session.logout()")
        tab.wait("views.own.status.value === 'failed' && !views.alerts.isConnected.value")
        missed = say(publisher, "training", flat("training", 1))
        log_in(tab, "ann")
        tab.wait(f"views.own.lastEventId.value === '{missed}' && views.own.error.value === null")
        tab.wait("views.alerts.isConnected.value")
        tab.run("views.own.app.unmount(); views.alerts.app.unmount()")
        wait_for_connections(server, 0)
        tab.run("session.logout()")
        log_in(tab, "ann")
        tab.page.wait_for_timeout(200)
        assert connections(server) == 0
    assert sorted(entry["reason"] for entry in tab.noted("over")) == ["closed", "token", "token"]


@pytest.mark.slow
def test_views_are_back_after_a_logout_and_a_login(chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    server.add_user("ann", PASSWORD, subscribe=",".join(COMPOSABLES))
    server.add_user("bob", PASSWORD, subscribe="alerts")
    tab = open_views(chrome, server)
    log_in(tab, "ann")
    tab.run("configure({ token: session, share: true })")
    for channel in COMPOSABLES:
        mount(tab, channel)
    tab.run("session.logout()")
    tab.wait(
        "Object.values(views).every((view) => !view.isConnected.value && view.error.value.reason === 'token')"
    )
    wait_for_connections(server, 0)
    assert [entry["reason"] for entry in tab.noted("over")] == ["token"]  # once for all views
    log_in(tab, "ann")
    tab.wait("Object.values(views).every((view) => view.isConnected.value)")
    log_in(tab, "bob")
    tab.wait("Object.values(views).filter((view) => view.error.value?.status === 403).length === 3")
    tab.wait("views.alerts.isConnected.value")
    with server.publisher() as publisher:
        for channel in COMPOSABLES:
            say(publisher, channel, flat(channel, 1))
    tab.wait("views.alerts.alerts.value.length === 1")
    assert connections(server) == 1
    assert tab.run("views.training.progress.value") == 0


@pytest.mark.slow
def test_whatever_views_come_and_go_in_tabs_that_share_a_stream_the_others_have_all(
    chrome: Chrome, serve: Start, built: str
) -> None:
    server = serve()
    tabs = [open_views(chrome, server) for _ in range(3)]
    for tab in tabs:
        tab.run("configure({ share: true })")
        mount(tab, "dashboard")
        mount(tab, "alerts")
    chance = random.Random(17)
    with publishing(server):
        for step in range(24):
            tab = chance.choice(tabs)
            channel = chance.choice(["training", "backtest"])
            key = f"{channel}{step}"
            tab.run(f"mount('{key}', '{COMPOSABLES[channel]}')")
            if chance.random() < 0.6:
                tab.wait(f"views.{key}.ids.length > 0")
            tab.run(f"views.{key}.app.unmount()")
            if step == 12:  # the tab that has the connection
                tabs.pop(0).page.close()
    with server.publisher() as publisher:
        last = say(publisher, "dashboard", flat("dashboard", 0))
        for tab in tabs:
            tab.wait(f"views.dashboard.ids.at(-1).endsWith('{last}')")
        logs = {channel: [f"{channel} {id}" for id in log_of(publisher, channel)] for channel in COMPOSABLES}
    for tab in tabs:
        seen: dict[str, list[str]] = tab.run(
            "Object.fromEntries(Object.entries(views).map(([key, { ids }]) => [key, ids]))"
        )
        for key, ids in seen.items():
            log = logs[key.rstrip("0123456789")]
            begin = log.index(ids[0]) if ids else 0
            assert ids == log[begin : begin + len(ids)], key
        for channel in ("dashboard", "alerts"):
            assert seen[channel][-1] == logs[channel][-1]
    wait_for_connections(server, 1)


@pytest.mark.ci
def test_views_say_that_the_connection_is_lost_and_back(chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    tab = open_views(chrome, server)
    tab.run("window.errors = []")
    mount(tab, "dashboard", "{ onError: (error) => errors.push(error.message) }")
    server.kill()
    tab.wait("!views.dashboard.isConnected.value && views.dashboard.error.value instanceof Error")
    server.start()
    tab.wait("views.dashboard.isConnected.value")
    assert shown(tab, "dashboard", "error", "retryCount", "connectionCount") == [None, 0, 2]
    assert tab.run("errors.length") >= 1


@pytest.mark.slow
def test_url_and_channels_may_be_refs(chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    tab = open_views(chrome, server)
    tab.run("window.channels = vue.ref(null); window.url = vue.ref(null)")
    tab.run("mount('one', 'useSSE', url, { channels: () => channels.value })")
    assert shown(tab, "one", "status") == ["idle"]
    tab.run("url.value = '/api/v1/sse'; channels.value = ['dashboard']")
    tab.wait("views.one.isConnected.value")
    with publishing(server):
        for channels in (["dashboard", "alerts"], ["dashboard", "training", "alerts"], ["dashboard"]):
            tab.run(f"window.before = views.one.ids.length; channels.value = {channels}")
            for channel in channels:
                tab.wait(f"views.one.ids.slice(before + 5).some((one) => one.startsWith('{channel} '))")
            until(lambda: connections(server) == 1, "one stream is left")
        assert shown(tab, "one", "status", "error") == ["connected", None]
    with server.publisher() as publisher:
        last = say(publisher, "dashboard", flat("dashboard", 0))
        tab.wait(f"views.one.lastEventId.value === '{last}'")
        log = [f"dashboard {id}" for id in log_of(publisher, "dashboard")]
        ids = [id for id in tab.run("views.one.ids") if id.startswith("dashboard ")]
        assert ids == log[-len(ids) :]
        assert len(set(tab.run("views.one.ids"))) == len(tab.run("views.one.ids"))
        # Nothing stays of what it was: it begins anew.
        tab.run("channels.value = null; url.value = '/api/v1/sse/backtest'")
        tab.wait("views.one.isConnected.value && views.one.connectionCount.value === 1")
        assert shown(tab, "one", "lastEvent") == [None]
        last = say(publisher, "backtest", flat("backtest", 1))
        tab.wait(f"views.one.lastEventId.value === '{last}'")
        tab.run("url.value = null")
        wait_for_connections(server, 0)
        assert shown(tab, "one", "status") == ["idle"]
