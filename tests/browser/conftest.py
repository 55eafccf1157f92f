"""Fixtures of the tests in this folder alone."""

from __future__ import annotations

from tests.support.browser_fixtures import chrome as chrome
from tests.support.browser_fixtures import chromium as chromium
from tests.support.browser_fixtures import script as script
from tests.support.browser_fixtures import serve as serve
