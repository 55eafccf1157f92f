"""Fixtures of the tests in this folder alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.browser_fixtures import chrome as chrome
from tests.support.browser_fixtures import script as script
from tests.support.browser_fixtures import serve as serve
from tests.support.browser_fixtures import whole_chrome as whole_chrome
from tests.support.chromium import connection_to
from tests.support.npm import built as built


@pytest.fixture(scope="package")
def chromium(chromium_address: str) -> Iterator[Browser]:
    """The one Chromium, connected to once for all of these tests: none of them runs an event loop."""
    with connection_to(chromium_address) as browser:
        yield browser
