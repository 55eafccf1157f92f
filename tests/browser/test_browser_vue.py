"""The Vue composables, with the real Vue and the package as it is built, in a real Chromium."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.support.browser import (
    CHANNEL,
    Chrome,
    Start,
    connections,
    open_vue,
    publish,
    wait_for_connections,
)
from tests.support.npm import CLIENT, npm

pytestmark = [pytest.mark.browser, pytest.mark.node]


def batch(publisher: httpx.Client, *events: tuple[str, str, dict[str, Any]]) -> list[str]:
    body = {"events": [{"channel": channel, "event": type, "data": data} for channel, type, data in events]}
    return list(publisher.post("/api/v1/sse", json=body).json()["ids"])


@pytest.mark.slow
def test_the_core_is_under_4096_bytes_minified_and_gzipped(built: str) -> None:
    print(built)
    sizes = {name: int(size) for name, size in re.findall(r"(\S+): .* (\d+) gzipped", built)}
    assert sizes["sse-client.js"] < 4096
    assert set(sizes) >= {"sse-client.js", "sse-shared.js", "vue.js"}


@pytest.mark.long
def test_the_type_declarations_fit_what_the_examples_do(built: str) -> None:
    npm("run", "types")


def test_the_lock_names_no_registry_but_npms(built: str) -> None:
    lock = json.loads((CLIENT / "package-lock.json").read_text())
    for package in lock["packages"].values():
        assert package.get("resolved", "https://registry.npmjs.org/").startswith(
            "https://registry.npmjs.org/"
        )


@pytest.mark.slow
def test_a_component_that_unmounts_leaves_nothing_running(chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    tab = open_vue(chrome, server)
    tab.run(f"mount('useSSE', '/api/v1/sse/{CHANNEL}', {{ events: ['tick'] }})")
    tab.wait("sse.isConnected.value")
    assert connections(server) == 1
    with server.publisher() as publisher:
        (id,) = publish(publisher)
        tab.wait(f"sse.lastEventId.value === '{id}'")
        tab.run("app.unmount()")
        tab.wait("navigator.locks.query().then(({ held, pending }) => held.length + pending.length === 0)")
        tab.wait("timers.size === 0")
        assert tab.run("streams.map((signal) => signal.aborted)") == [True]
        wait_for_connections(server, 0)
        publish(publisher)
    assert tab.run("sse.status.value") == "closed"
    assert len(tab.noted("event")) == 1


@pytest.mark.slow
def test_a_component_that_unmounts_while_it_connects_never_connects(
    chrome: Chrome, serve: Start, built: str
) -> None:
    server = serve()
    tab = open_vue(chrome, server)
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    for _ in range(5):
        tab.run(f"mount('useSSE', '/api/v1/sse/{CHANNEL}'); app.unmount()")
    tab.run(f"mount('useSSE', '/api/v1/sse/{CHANNEL}')")
    tab.wait("sse.isConnected.value")
    assert len([url for url in asked if f"/sse/{CHANNEL}" in url]) == 1
    assert connections(server) == 1


@pytest.mark.slow
def test_a_burst_is_not_lost_to_reactivity(chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    tab = open_vue(chrome, server)
    tab.run(f"mount('useSSE', '/api/v1/sse/{CHANNEL}', {{ events: ['tick'] }})")
    tab.wait("sse.isConnected.value")
    with server.publisher() as publisher:
        ids = publish(publisher, 500)
        tab.has(ids[-1])
    assert tab.ids() == ids
    tab.wait(f"document.querySelector('#app').textContent.endsWith('{ids[-1]}')")


@pytest.mark.slow
def test_status_counts_and_error_tell_what_happens(chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    tab = open_vue(chrome, server)
    tab.run(f"mount('useSSE', '/api/v1/sse/{CHANNEL}', {{ autoConnect: false, events: ['tick'] }})")
    assert tab.run("[sse.status.value, sse.isConnected.value, sse.connectionCount.value]") == [
        "idle",
        False,
        0,
    ]
    tab.run("window.heard = []; window.hear = (event) => heard.push(JSON.parse(event.data).n); 0")
    tab.run("sse.addEventListener('extra', hear); sse.connect()")
    tab.wait("sse.isConnected.value")
    with server.publisher() as publisher:
        publish(publisher, 2, event="extra")
        tab.wait("heard.length === 2")
        tab.run("sse.removeEventListener('extra', hear)")
        server.kill()
        tab.wait("sse.status.value === 'reconnecting' && sse.retryCount.value >= 2")
        server.start()
        tab.wait("sse.isConnected.value")
        assert tab.run("[sse.connectionCount.value, sse.retryCount.value, sse.error.value]") == [2, 0, None]
        publish(publisher, 2, event="extra")
        (id,) = publish(publisher)
        tab.wait(f"sse.lastEventId.value === '{id}'")
        tab.run("sse.disconnect()")
        assert tab.run("sse.status.value") == "closed"
        publish(publisher)
        tab.run("sse.reset(); sse.connect()")
        tab.wait("sse.isConnected.value")
        assert tab.run("[heard, sse.connectionCount.value, sse.lastEvent.value]") == [[0, 1], 1, None]
        assert len(tab.noted("event")) == 5  # what was published while it was closed belongs to the past
    tab.run("app.unmount(); mount('useSSE', '/api/v1/sse/nowhere')")
    tab.wait("sse.status.value === 'failed'")
    assert tab.run("[sse.error.value.status, sse.error.value.reason]") == [404, "status 404"]


@pytest.mark.slow
def test_training_backtest_alerts_and_dashboard_have_composables_of_their_own(
    chrome: Chrome, serve: Start, built: str
) -> None:
    server = serve()
    tabs = {}
    for name in ("useTrainingProgress", "useBacktestProgress", "useRiskAlerts", "useDashboardUpdates"):
        tabs[name] = open_vue(chrome, server)
        tabs[name].run(f"mount('{name}', {{ maxRuns: 2, maxAlerts: 3 }})")
        tabs[name].wait("sse.isConnected.value")
    assert connections(server) == 1
    with server.publisher() as publisher:
        for n in range(5):
            ids = batch(
                publisher,
                ("training", "training_progress", {"task_id": f"t{n}", "progress": n, "status": "running"}),
                ("backtest", "backtest_progress", {"backtest_id": f"b{n}", "progress": 10 * n}),
                ("alerts", "risk_alert", {"severity": "high", "message": f"alert {n}"}),
                ("dashboard", "dashboard_update", {"update_type": "metrics", "data": {"total_value": n}}),
            )
    for tab, id in zip(tabs.values(), ids, strict=True):
        tab.has(id)
    training, backtest, alerts, dashboard = tabs.values()
    assert training.run("[[...sse.runs.keys()], sse.progress.value]") == [["t3", "t4"], 4]
    assert backtest.run("[[...sse.runs.keys()], sse.progress.value]") == [["b3", "b4"], 40]
    shown = "[sse.alerts.value.map((alert) => alert.message), sse.unreadCount.value]"
    assert alerts.run(shown) == [["alert 4", "alert 3", "alert 2"], 3]
    alerts.run("sse.markAsRead(sse.alerts.value[0].id)")
    assert alerts.run("sse.unreadCount.value") == 2
    alerts.run("sse.markAllAsRead()")
    assert alerts.run("sse.unreadCount.value") == 0
    assert dashboard.run("sse.updates.metrics.total_value") == 4


@pytest.mark.slow
def test_the_examples_of_the_readme_run_as_they_stand(chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    tab = open_vue(chrome, server)
    server.add_user("ann", "correct horse battery", subscribe="dashboard,alerts,training")
    text = (CLIENT / "README.md").read_text().replace("http://localhost:8000", server.url)
    module, listeners, _, vue, *_ = re.findall(r"```js\n(.*?)```", text, re.DOTALL)
    login, _, _ = module.partition("const client =")
    closing = re.compile(r"^client\.close.*$", re.MULTILINE)
    names = """
        const show = (...all) => log.push({ kind: 'shown', all }), draw = show, say = show, reload = show;
        const showLogin = show, name = "ann", password = "correct horse battery";
    """
    for script in (module + closing.sub("", listeners), login + vue):
        tab.page.add_script_tag(content=f"{names}\n{script}", type="module")
    with server.publisher() as publisher:
        tab.wait("navigator.locks.query().then(({ held }) => held.length >= 4)")
        wait_for_connections(server, 1)
        sent: list[tuple[str, str, dict[str, Any]]] = [
            ("alerts", "risk_alert", {"n": 1}),
            ("training", "training_progress", {"task_id": "t", "progress": 1}),
            ("dashboard", "dashboard_update", {"update_type": "metrics", "data": {}}),
        ]
        batch(publisher, *sent)
        tab.wait("log.filter((e) => e.kind === 'shown').length === 4")
