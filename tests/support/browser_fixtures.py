"""Fixtures for tests of the browser client; a folder that needs them imports them in its conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.support.browser import Chrome, Start, serve_pages
from tests.support.chromium import chromium_server
from tests.support.programs import require
from tests.support.scripted_server import ScriptedServer, scripted_server


@pytest.fixture
def chrome(chromium: Browser) -> Iterator[Chrome]:
    """A fresh profile in it; errors of pages that no test expects fail the test."""
    with serve_pages() as origin, chromium.new_context() as context:
        chrome = Chrome(context, origin)
        yield chrome
        assert chrome.trouble == []


@pytest.fixture
def whole_chrome(chromium: Browser, tmp_path: Path) -> Iterator[Chrome]:
    """As `chrome`, in a Chromium with all that it has, such as the back-forward cache."""
    with (
        chromium_server(tmp_path, require("chromium")) as address,
        chromium.browser_type.connect(address) as browser,  # a thread has one Playwright at a time
        serve_pages() as origin,
        browser.new_context() as context,
    ):
        chrome = Chrome(context, origin)
        yield chrome
        assert chrome.trouble == []


@pytest.fixture
def serve(chrome: Chrome, start_server: Start) -> Start:
    """A function that starts a server which the pages may ask, and which tells lost clients to come back soon."""
    return partial(start_server, CORS_ORIGINS=[chrome.origin], STREAM__RETRY=200)


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    """A server that answers as the test says."""
    with scripted_server() as server:
        yield server
