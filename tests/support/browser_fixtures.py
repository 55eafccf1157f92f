"""Fixtures for tests in a browser; a module takes them with ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.ops.test_demo import CHROMIUM_FLAGS
from tests.support.browser import Chrome, Start, serve_pages
from tests.support.programs import require
from tests.support.scripted_server import ScriptedServer, scripted_server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=require("chromium"),
            args=CHROMIUM_FLAGS,
            ignore_default_args=["--disable-back-forward-cache"],  # people use it, so pages must stand it
        )
        yield browser
        browser.close()


@pytest.fixture
def chrome(chromium: Browser) -> Iterator[Chrome]:
    """A fresh profile in it; errors of pages that no test expects fail the test."""
    with serve_pages() as origin, chromium.new_context() as context:
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
