"""What the tests share: a server of their own, in the process or beside it, and logs without surprises."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis
from tornado import web
from tornado.ioloop import IOLoop
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

from sse_app import Settings, SSEApp
from tests.support.chromium import connection_to, shared_chromium
from tests.support.hostility import target as target
from tests.support.hostility import (
    the_log_stays_quiet_and_the_server_alive as the_log_stays_quiet_and_the_server_alive,
)
from tests.support.house import house as house
from tests.support.house import limited as limited
from tests.support.house import the_log_stays_quiet as the_log_stays_quiet
from tests.support.postgres import database_url as database_url
from tests.support.postgres import postgres as postgres
from tests.support.postgres import shared_directory as shared_directory
from tests.support.server_process import ServerProcess, starting
from tests.support.waiting import DEADLINE

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# httpx reads all certificates of the machine for each client, 30 ms: no test speaks to a host that has one of them.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)

# By default httpx gives up after five seconds, which a busy machine may take: a deadline here only bounds a hang.
vars(inspect.signature(httpx.get).parameters["timeout"].default).update(
    dict.fromkeys(("connect", "read", "write", "pool"), DEADLINE)
)

# How long examples take to be made up is the machine's affair, and not the tests'.
hypothesis.register_profile(
    "tests", hypothesis(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis.load_profile("tests")

# As in the Makefile: else each server of a test compiles the whole program at its start, in ten times the time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Else the first to ask for the main thread's event loop gets one made, which nobody closes: pytest-tornado asks.
asyncio.set_event_loop(None)


LONGEST = (
    "tests/faults/test_soak.py",
    "tests/http/test_clocks.py",
    "tests/faults/test_every_fault.py",
    "tests/ops/test_handover.py",
    "tests/client/test_clients_page.py",
    "tests/ops/test_postgres_faults.py",
    "tests/contract/test_auth_store.py",
    "tests/contract/test_eventlog.py",
    "tests/ops/test_workers.py",
    "tests/ops/test_upgrade.py",
    "tests/browser/test_browser_session.py",
    "tests/browser/test_browser_tabs.py",
    "tests/browser/test_browser_client.py",
    "tests/browser/test_browser_vue.py",
    "tests/contract/test_shared_eventlog.py",
    "tests/ops/test_nodes_as_one.py",
    "tests/ops/test_standard_streams.py",
    "tests/ops/test_copy_to_postgres.py",
    "tests/security/test_revocations_kept.py",
    "tests/ops/test_stand_in.py",
    "tests/ops/test_files_in_use.py",
    "tests/security/test_login_limits.py",
    "tests/contract/test_openapi.py",
    "tests/ops/test_doctor.py",
    "tests/browser/test_browser_users.py",
    "tests/browser/test_page_accessibility.py",
)
"""The files that take longest, which run first: the last file of a run keeps one process busy and the others idle.

Behind the soak, which waits for three minutes, a process is given one test alone: the next files are shared out.
"""

SHARED_OUT = (
    "tests/faults/test_every_fault.py",
    "tests/http/test_clocks.py",
    "tests/ops/test_postgres_faults.py",
    "tests/contract/test_auth_store.py",
    "tests/ops/test_workers.py",
)
"""Those of them whose tests have nothing in common, each of which runs where there is room."""


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """Gives each process a file at a time, and of some files a test at a time."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return nodeid if file in SHARED_OUT else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling | None:
    """Replace the scheduling by files."""
    return Scheduling(config, log) if config.option.dist == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and see to it that each test has an id of its own.

    Of tests with the same id pytest-xdist runs one alone.
    """
    for id, count in Counter(item.nodeid for item in items).most_common(1):
        assert count == 1, f"{count} tests are called {id}"
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


def pytest_collection_finish() -> None:
    """Have no garbage collection look through all the tests: each would take a tenth of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of whoever runs the tests out of them."""
    for name in list(os.environ):
        if name.startswith("SSE_APP_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_unexpected_logs(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which something was logged as a warning or worse that it does not expect.

    A test expects some with ``@pytest.mark.expects_logs("event_log_unavailable")``, by the message.
    """
    expected = {name for mark in request.node.iter_markers("expects_logs") for name in mark.args}
    yield
    surprising = [
        f"{record.name}: {record.getMessage()}"
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.levelno >= logging.WARNING and not any(text in record.getMessage() for text in expected)
    ]
    assert not surprising, surprising


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The settings of the server in the process; a test overrides this fixture to change them."""
    return Settings(state_dir=tmp_path / "state", event_log="memory:")


@pytest.fixture
def sse(io_loop: IOLoop, settings: Settings) -> Iterator[SSEApp]:
    """A server in the process, started."""
    app = SSEApp(settings)
    io_loop.run_sync(app.start)
    yield app
    io_loop.run_sync(app.stop)


@pytest.fixture
def app(sse: SSEApp) -> web.Application:
    """What pytest-tornado's ``http_server`` serves."""
    return sse.application()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """A function that starts a real server process; its arguments are `ServerProcess`'s settings.

    Its log is checked at the end: no traceback, no token, nothing worse than what the test says it expects.
    """
    yield from starting(lambda **settings: ServerProcess(**{"state_dir": tmp_path / "state", **settings}))


@pytest.fixture
def server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A real server process with default settings."""
    return start_server()


@pytest.fixture(scope="session")
def chromium_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the one Chromium of this run can be connected to."""
    folder = tmp_path_factory.getbasetemp()
    with shared_chromium(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) as address:
        yield address


@pytest.fixture(scope="module")
def chromium(chromium_address: str) -> Iterator[Browser]:
    """The one Chromium; while a module is connected to it, no event loop can run in its tests' thread."""
    with connection_to(chromium_address) as browser:
        yield browser
