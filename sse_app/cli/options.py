"""Turns the flags of a command into settings and grants."""

from __future__ import annotations

import argparse
import json

from sse_app.auth.tokens.grants import Grants
from sse_app.core.errors import SettingsError
from sse_app.settings.loader import load_settings
from sse_app.settings.model import Settings


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that a command works with.

    Raises:
        SettingsError: a setting has a bad value, or is unknown.
    """
    flags: dict[str, object] = {
        name: getattr(options, name)
        for name in ("host", "port", "state_dir", "event_log")
        if hasattr(options, name)
    }
    for assignment in getattr(options, "set", []):
        name, separator, text = assignment.partition("=")
        if not separator or not name:
            raise SettingsError(f"--set takes NAME=VALUE, not {assignment!r}")
        try:
            flags[name] = json.loads(text)
        except ValueError:
            flags[name] = text
    return load_settings(getattr(options, "config", None), flags)


def grants_of(options: argparse.Namespace) -> Grants:
    """Return the grants of ``--subscribe``, ``--publish`` and ``--admin``.

    Raises:
        InvalidChannel: a text is no channel pattern.
    """
    subscribe, publish = (
        [text for text in value.split(",") if text] for value in (options.subscribe, options.publish)
    )
    return Grants.of(subscribe, publish, options.admin)
