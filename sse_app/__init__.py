"""Authenticated Server-Sent Events on Tornado: streams that lose nothing, behind tokens that open nothing else."""

from sse_app.application import SSEApp
from sse_app.errors import (
    EventLogUnavailable,
    InvalidChannel,
    InvalidInput,
    SettingsError,
    SSEAppError,
    StateError,
    TokenRefused,
    UnknownChannel,
)
from sse_app.events import EventId
from sse_app.settings import Settings, load_settings
from sse_app.version import VERSION

__version__ = VERSION
__all__ = [
    "EventId",
    "EventLogUnavailable",
    "InvalidChannel",
    "InvalidInput",
    "SSEApp",
    "SSEAppError",
    "Settings",
    "SettingsError",
    "StateError",
    "TokenRefused",
    "UnknownChannel",
    "__version__",
    "load_settings",
]
