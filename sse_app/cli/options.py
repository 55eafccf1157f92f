"""Turns the flags of a command into settings and grants."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from difflib import get_close_matches

from sse_app.auth.tokens.grants import Grants
from sse_app.core.channels import ChannelPattern
from sse_app.core.errors import SettingsError
from sse_app.process.standard_streams import complain
from sse_app.settings.channels import rules_of
from sse_app.settings.loader import load_settings
from sse_app.settings.model import Settings


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that a command works with.

    Raises:
        SettingsError: a setting has a bad value, or is unknown.
    """
    flags: dict[str, object] = {
        name: getattr(options, name)
        for name in ("host", "port", "state_dir", "event_log", "workers")
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
    """Return the grants of ``--subscribe``, ``--publish``, ``--admin`` and ``--presence``.

    Raises:
        InvalidChannel: a text is no channel pattern.
    """
    subscribe, publish, presence = (
        [text for text in value.split(",") if text]
        for value in (options.subscribe, options.publish, options.presence)
    )
    return Grants.of(subscribe, publish, options.admin, presence)


def uncovered(patterns: Iterable[str], settings: Settings) -> list[str]:
    """Return a line for each pattern that matches no channel the settings have, perhaps with what was meant."""
    known = rules_of(settings.channels)
    lines = []
    for text in patterns:
        if not known.overlapping(ChannelPattern(text)):
            close = get_close_matches(text, known.texts, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            lines.append(f"the settings have no channel that {text} covers{hint}")
    return lines


def warn_of_uncovered(grants: Grants, settings: Settings) -> None:
    """Say on standard error which of the patterns match no channel; they are granted all the same."""
    patterns = (*grants.subscribe.texts, *grants.publish.texts, *grants.presence.texts)
    for line in uncovered(dict.fromkeys(patterns), settings):
        complain(f"warning: {line}")
