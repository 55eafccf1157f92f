"""Authenticated Server-Sent Events on Tornado: streams that lose nothing, and tokens that open only streams."""

from importlib import import_module
from typing import TYPE_CHECKING

from sse_app.core.errors import (
    EventLogUnavailable,
    InvalidChannel,
    InvalidInput,
    NotStarted,
    OutcomeUnknown,
    SettingsError,
    SSEAppError,
    StateError,
    TokenRefused,
    TooManyPublishes,
    UnknownChannel,
)
from sse_app.core.events import EventId
from sse_app.version import VERSION

if TYPE_CHECKING:
    from sse_app.app import SSEApp
    from sse_app.settings.loader import load_settings
    from sse_app.settings.model import Settings

__version__ = VERSION
__all__ = [
    "EventId",
    "EventLogUnavailable",
    "InvalidChannel",
    "InvalidInput",
    "NotStarted",
    "OutcomeUnknown",
    "SSEApp",
    "SSEAppError",
    "Settings",
    "SettingsError",
    "StateError",
    "TokenRefused",
    "TooManyPublishes",
    "UnknownChannel",
    "__version__",
    "load_settings",
]

_LAZY = {
    "SSEApp": "sse_app.app",
    "Settings": "sse_app.settings.model",
    "load_settings": "sse_app.settings.loader",
}
"""Names that are imported at their first use: a program that uses only the client does not load the server."""


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value
