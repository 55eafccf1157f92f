"""Fixtures of the tests in this folder alone."""

from __future__ import annotations

from tests.support.service import cold as cold
from tests.support.service import manager as manager
from tests.support.service import service as service
from tests.support.service import session_manager as session_manager
from tests.support.service import start_service as start_service
