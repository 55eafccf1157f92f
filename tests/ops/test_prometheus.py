"""The alert rules and the dashboard: a real Prometheus takes them, and finds in a real server all that they ask for."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from sse_app.cluster.base import Answers
from sse_app.monitoring.prometheus import render_all
from tests.support.ports import reserved_port
from tests.support.programs import require
from tests.support.server_process import ROOT, ServerProcess, running
from tests.support.waiting import until

RULES = ROOT / "config/prometheus/sse_app.rules.yml"
CONFIG = ROOT / "config/prometheus/prometheus.yml"
DASHBOARD = ROOT / "config/grafana/sse_app.json"
OPERATIONS = ROOT / "docs/operations.md"

EMPTY = ("sse_app_connections_shed_total", "sse_app_refusals_total")
"""Metrics whose samples come with the first of what they count, which a good server does not have."""


def promtool(*words: str) -> None:
    """Run promtool, which must find nothing wrong."""
    done = subprocess.run([require("promtool"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout


def alerts() -> dict[str, dict[str, Any]]:
    """Return the alerts by their names."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    """Return what the dashboard shows."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """Return what the dashboard asks for, for the job of the configuration."""
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    asked += [each["expr"] for each in json.loads(DASHBOARD.read_text())["annotations"]["list"]]
    values = {"$job": "sse_app", "$instance": ".*", "$__rate_interval": "1m"}
    for name, value in values.items():
        asked = [expression.replace(name, value) for expression in asked]
    return asked


def metrics_in(text: str) -> set[str]:
    """Return the metrics that a text names, without the endings of a histogram's samples."""
    found = re.findall(r"\b(?:sse_app|process)_[a-z_]+[a-z]\b(?=[\s{)\[`,]|$)", text)
    return {name.removesuffix("_bucket") for name in found}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that was published to."""
    with running(state_dir=tmp_path_factory.mktemp("server") / "state") as server:
        yield server


@pytest.fixture(scope="module")
def prometheus(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus with the configuration that comes with the server, which it has asked twice."""
    folder = tmp_path_factory.mktemp("prometheus")
    text = CONFIG.read_text()
    for theirs, ours in {
        "scrape_interval: 15s": "scrape_interval: 500ms",
        "evaluation_interval: 15s": "evaluation_interval: 500ms",
        "127.0.0.1:8000": f"127.0.0.1:{server.port}",
    }.items():
        assert theirs in text
        text = text.replace(theirs, ours)
    (folder / "prometheus.yml").write_text(text)
    (folder / RULES.name).write_text(RULES.read_text())
    with reserved_port() as port, (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                require("prometheus"),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False) as client:
                until(lambda: has_asked_twice(client, server), "Prometheus has asked the server twice")
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def has_asked_twice(client: httpx.Client, server: ServerProcess) -> bool:
    """Publish an event, and return whether Prometheus has samples of two moments since."""
    with server.publisher() as publisher:
        publisher.post("/api/v1/sse/alerts", json={"event": "e", "data": {}})
    try:
        answer = client.get("/query", params={"query": "count_over_time(sse_app_ready[1m])"}).json()
    except (httpx.HTTPError, ValueError):
        return False
    found = answer.get("data", {}).get("result", [])
    return bool(found) and float(found[0]["value"][1]) > 2


def test_promtool_finds_nothing_wrong_in_the_configuration_and_the_rules() -> None:
    promtool("check", "config", str(CONFIG))
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))


@pytest.mark.long
def test_each_alert_fires_on_what_it_is_for_and_on_nothing_else() -> None:
    tests = ROOT / "tests/ops/prometheus/sse_app.test.yml"
    promtool("test", "rules", str(tests))
    assert [name for name in alerts() if name not in tests.read_text()] == []


@pytest.mark.slow
def test_prometheus_finds_the_server_and_takes_the_rules(prometheus: httpx.Client) -> None:
    (target,) = prometheus.get("/targets").json()["data"]["activeTargets"]
    assert (target["health"], target["lastError"], target["labels"]["job"]) == ("up", "", "sse_app")
    (group,) = prometheus.get("/rules").json()["data"]["groups"]
    until(
        lambda: all(
            rule["health"] == "ok" for rule in prometheus.get("/rules").json()["data"]["groups"][0]["rules"]
        ),
        "each rule was evaluated",
    )
    assert [rule["name"] for rule in group["rules"]] == list(alerts())
    assert [rule["name"] for rule in group["rules"] if rule["state"] == "firing"] == []


def test_each_panel_of_the_dashboard_shows_something_of_a_server(prometheus: httpx.Client) -> None:
    for query in queries():
        answer = prometheus.get("/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        may_be_empty = any(name in query for name in (*EMPTY, "_ends_total", "changes("))
        assert answer["data"]["result"] or may_be_empty, query


def test_the_dashboard_is_one_that_grafana_can_read() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers))
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)", DASHBOARD.read_text()))
    assert used == names
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells
    assert all(panel["title"] and panel["description"] for panel in panels())


def test_each_metric_that_a_rule_a_panel_or_the_documents_name_is_in_a_scrape(server: ServerProcess) -> None:
    scraped = httpx.get(f"{server.url}/metrics").text
    for noun in ("worker", "node"):
        scraped += render_all(Answers({}, ()), noun).decode()
    there = set(re.findall(r"^# TYPE (\S+)", scraped, re.MULTILINE))
    for path in (RULES, OPERATIONS):
        named = metrics_in(path.read_text())
        assert len(named) > 15
        assert named - there == set(), path
    assert metrics_in("\n".join(queries())) - there == set()


def test_each_metric_of_ours_is_in_the_documents(server: ServerProcess) -> None:
    scraped = set(re.findall(r"^# TYPE (sse_app_\S+)", httpx.get(f"{server.url}/metrics").text, re.MULTILINE))
    assert scraped - metrics_in(OPERATIONS.read_text()) == set()


def test_the_documents_say_for_each_alert_what_to_do() -> None:
    section = OPERATIONS.read_text().partition("## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(SSEApp\w+)`", section, re.MULTILINE) == list(alerts())
    for name, rule in alerts().items():
        assert {"summary", "description"} == set(rule["annotations"]), name
        assert rule["labels"]["severity"] in ("warning", "critical")
