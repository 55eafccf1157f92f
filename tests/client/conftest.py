"""Fixtures of the tests in this folder alone."""

from __future__ import annotations

from tests.support.browser_fixtures import chrome as chrome
from tests.support.browser_fixtures import serve as serve
from tests.support.npm import built as built
