"""Authenticated Server-Sent Events on Tornado: streams that lose nothing, behind tokens that open nothing else."""

from importlib import import_module
from typing import TYPE_CHECKING

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
from sse_app.version import VERSION

if TYPE_CHECKING:
    from sse_app.application import SSEApp
    from sse_app.settings import Settings
    from sse_app.sources import load_settings

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

_LATER = {
    "SSEApp": "sse_app.application",
    "Settings": "sse_app.settings",
    "load_settings": "sse_app.sources",
}
"""What is imported when it is first asked for: whoever wants only the client need not load the server."""


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LATER[name]), name)
    return value
