"""Fixtures of the tests in this folder alone."""

from __future__ import annotations

from tests.support.room import room as room
from tests.support.room import start_room as start_room
