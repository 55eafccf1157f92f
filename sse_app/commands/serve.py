"""``serve`` and ``check-config``."""

from __future__ import annotations

import argparse

from sse_app import logs, server
from sse_app.commands.options import settings_of
from sse_app.settings import find_settings_file


def serve(options: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    settings = settings_of(options)
    logs.configure(settings.log.level, settings.log.format)
    server.run(settings)


def check_config(options: argparse.Namespace) -> None:
    """Read the settings as ``serve`` would, and print those in force."""
    settings = settings_of(options)
    print(f"settings file: {find_settings_file(getattr(options, 'config', None)) or 'none'}")
    for name, value in settings.model_dump(mode="json").items():
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                print(f"{name}.{inner} = {inner_value!r}")
        else:
            print(f"{name} = {value!r}")
