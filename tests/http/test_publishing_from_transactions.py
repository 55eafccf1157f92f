"""Applications that publish in transactions in the database, beside publishers over HTTP, as clients see it."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.support.postgres import Postgres, programs
from tests.support.room import first, listen, receive, take
from tests.support.server_process import ROOT, ServerProcess, starting
from tests.support.sql_publishers import Shop, publish
from tests.support.waiting import until


@pytest.fixture
def shop(postgres: Postgres, database_url: str) -> Shop:
    """A database whose application may publish everywhere."""
    return Shop(postgres, database_url)


@pytest.fixture
def nodes(tmp_path: Path, shop: Shop) -> Iterator[list[ServerProcess]]:
    """Two servers with the same keys on the shop's database."""

    def make(number: int) -> ServerProcess:
        keys: dict[str, Any] = {"AUTH__KEYS_DIR": str(tmp_path / "node1/keys")} if number > 1 else {}
        return ServerProcess(
            state_dir=tmp_path / f"node{number}",
            EVENT_LOG=shop.owner_url,
            NODE=f"node{number}",
            expected=("node_silent",),  # on a busy machine
            **keys,
        )

    start: Callable[..., ServerProcess]
    for start in starting(make):
        yield [start(number=1), start(number=2)]


@pytest.mark.slow
def test_transactions_and_publishers_over_http_are_one_order_on_all_nodes(
    nodes: list[ServerProcess], shop: Shop
) -> None:
    authorized = {"Authorization": f"Bearer {nodes[0].access_token()}"}
    expected: list[str] = []
    lock = threading.Lock()

    def over_http(node: ServerProcess, name: str) -> None:
        with httpx.Client(base_url=node.url, headers=authorized, timeout=30) as http:
            for number in range(25):
                answer = http.post("/api/v1/sse/dashboard", json={"event": f"{name}.{number}", "data": {}})
                assert answer.status_code == 201, answer.text
                with lock:
                    expected.append(f"{name}.{number}")

    def in_sql(name: str) -> None:
        chance = random.Random(name)
        with shop.connect() as application:
            for turn in range(20):
                types = [f"{name}.{turn}.{step}" for step in range(chance.randrange(1, 5))]
                for type in types:
                    publish(application, type, channel="dashboard")
                if chance.random() < 0.3:
                    application.rollback()
                else:
                    application.commit()
                    with lock:
                        expected.extend(types)

    token = nodes[0].stream_token("dashboard")
    with (
        listen(nodes[0].stream_url("dashboard", token)) as here,
        listen(nodes[1].stream_url("dashboard", token)) as there,
        shop.connect() as long,
    ):
        assert first(here).id == first(there).id
        publish(long, "long", channel="dashboard")  # its transaction is open all the while
        work = [(over_http, (node, f"h{number}")) for number, node in enumerate(nodes)]
        threads = [threading.Thread(target=target, args=args) for target, args in work]
        threads += [threading.Thread(target=in_sql, args=(f"s{number}",)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        long.commit()
        seen = [take(frames, len(expected) + 1) for frames in (here, there)]
    assert seen[0] == seen[1]
    types = [frame.type for frame in seen[0]]
    assert sorted(types) == sorted([*expected, "long"])
    assert types[-1] == "long"
    for name in ("h0", "h1", "s0", "s1", "s2"):
        mine = [type for type in expected if type.startswith(f"{name}.")]
        assert [type for type in types if type.startswith(f"{name}.")] == mine


def test_texts_and_the_end_of_a_channel_come_from_transactions_as_over_http(
    nodes: list[ServerProcess], shop: Shop
) -> None:
    node = nodes[1]
    fragment = "<p>\u00e9</p>\r\n<b>two</b>\n"
    with shop.connect() as application:
        for value in ("to_jsonb(%s::text)", "to_json(%s::text)"):
            application.execute(f"SELECT sse_app.publish('training', 'html', {value})".encode(), [fragment])
        publish(application, "list", "[1, 2.50]", "training")
        with receive(node.stream_url("training", nodes[0].stream_token("training"))) as events:
            assert next(events).type == "connected"
            application.execute("SELECT sse_app.publish('training', 'end', '\"done\"', final => true)")
            application.commit()
            received = [(event.type, event.data) for event in events]
    lines = fragment.replace("\r\n", "\n")
    assert received[:4] == [("html", lines), ("html", lines), ("list", "[1,2.5]"), ("end", "done")]
    assert [type for type, _ in received[4:]] == ["closing"]
    token = nodes[0].stream_token("training")
    with receive(node.stream_url("training", token) + "&from=earliest") as events:
        assert [event.type for event in events][1:] == ["html", "html", "list", "end", "closing"]


def test_the_channels_of_the_settings_are_those_of_transactions_also_after_a_reload(
    tmp_path: Path, shop: Shop, start_server: Callable[..., ServerProcess]
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('channels = ["alerts"]\n')
    server = start_server(EVENT_LOG=shop.owner_url, CONFIG=str(file))
    refused = psycopg.errors.UndefinedObject
    with shop.connect(autocommit=True) as application:
        publish(application, "x", channel="alerts")
        with pytest.raises(refused, match="there is no channel dashboard"):
            publish(application, "x", channel="dashboard")
        file.write_text('channels = ["dashboard"]\n[limits]\nbody_bytes = 5000\n')
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)

        def reloaded() -> bool:
            return shop.superuser("SELECT channels, body_bytes FROM sse_app.publishing") == [
                (["dashboard"], 5000)
            ]

        until(reloaded, "the database has the new settings")
        publish(application, "x", channel="dashboard")
        with pytest.raises(refused, match="there is no channel alerts"):
            publish(application, "x", channel="alerts")
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            publish(application, "x", '{"a": "' + 5000 * "b" + '"}', channel="dashboard")


@pytest.mark.ci
def test_a_session_that_holds_the_log_costs_http_a_503_and_no_event(
    nodes: list[ServerProcess], shop: Shop
) -> None:
    """It has made constraints immediate after it published, and does not commit."""
    one = nodes[0]
    one.expected = ("event_log_unavailable", "node_silent")
    body = {"event": "x", "data": {}}
    with one.publisher() as http, shop.connect() as holder:
        publish(holder, "held")
        holder.execute("SET CONSTRAINTS ALL IMMEDIATE")
        answer = http.post("/api/v1/sse/alerts", json=body)
        assert answer.status_code == 503
        assert "Retry-After" in answer.headers
        holder.commit()

        def published() -> httpx.Response:
            return http.post("/api/v1/sse/alerts", json=body | {"event": "after"})

        until(lambda: published().status_code == 201, "the log is free again")
    assert set(shop.types()) == {"held", "after"}


# -- what docs/scaling.md shows ------------------------------------------------------------------------------------

DJANGO = """
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "%s", "USER": "%s",
                                          "HOST": "127.0.0.1", "PORT": "%s"}})
import django
django.setup()
"""


def recipe(name: str, shop: Shop) -> str:
    """Return the code of docs/scaling.md after a name in bold, for this database."""
    page = (ROOT / "docs/scaling.md").read_text()
    section = page.partition("## Publishing in your own transaction\n")[2].partition("\n## ")[0]
    (code,) = re.findall(rf"\*\*{name}\*\*.*?```\w+\n(.*?)```", section, re.DOTALL)
    return str(code).replace(
        "//shop@localhost/shop", f"//{shop.role}@127.0.0.1:{shop.postgres.port}/{shop.database}"
    )


def run(name: str, code: str, shop: Shop) -> subprocess.CompletedProcess[str]:
    """Run a recipe."""
    if name == "psql":
        command = [str(programs() / "psql"), "--no-psqlrc", "--set=ON_ERROR_STOP=1", shop.url]
    else:
        django = DJANGO % (shop.database, shop.role, shop.postgres.port) if name == "Django" else ""
        command, code = [sys.executable, "-c", django + code], ""
    return subprocess.run(command, input=code, text=True, capture_output=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["psql", "psycopg", "SQLAlchemy", "Django"])
def test_the_recipes_run_as_they_stand_and_publish_nothing_where_they_fail(name: str, shop: Shop) -> None:
    shop.superuser("ALTER TABLE orders ADD COLUMN item text")
    code = recipe(name, shop)
    failing = code.replace("COMMIT", "SELECT 1 / 0") if name == "psql" else f"{code}    raise RuntimeError\n"
    assert run(name, failing, shop).stderr.endswith(("RuntimeError\n", "division by zero\n"))
    assert (shop.stored(), shop.superuser("SELECT item FROM orders")) == ([], [])
    done = run(name, code, shop)
    assert (done.returncode, done.stderr) == (0, "")
    assert shop.superuser("SELECT item FROM orders") == [("tea",)]
    (event,) = shop.stored()
    assert (event.channel, event.type) == ("alerts", "order_placed")
    assert event.data.startswith(b'{"item":"tea","channel":"alerts","timestamp":"')


def test_the_lines_for_the_owner_run_as_they_stand(shop: Shop) -> None:
    code = recipe("Rights", shop).replace("'shop'", f"'{shop.role}'")
    with shop.owner() as owner:
        for statement in filter(str.strip, code.split(";")):
            owner.execute(statement.encode())
    with shop.connect(autocommit=True) as application, pytest.raises(psycopg.errors.InsufficientPrivilege):
        publish(application, "x")
