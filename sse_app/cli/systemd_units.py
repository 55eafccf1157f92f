"""``systemd install``: writes the socket and service units for this installation (socket activation)."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from string import Template

from sse_app.cli.options import settings_of
from sse_app.core.errors import StateError
from sse_app.settings.loader import find_settings_file

TEMPLATES = Path(__file__).parent / "units"
UNITS = ("sse-app.socket", "sse-app.service")


def install(options: argparse.Namespace) -> None:
    """Write both units, and print the command that starts them.

    Raises:
        StateError: the units cannot be written.
    """
    settings = settings_of(options)
    config = find_settings_file(getattr(options, "config", None))
    listen = f"[{settings.host}]" if ":" in settings.host else settings.host
    texts = render(
        command=[*_program(), "serve"],
        config=_environment("SSE_APP_CONFIG", str(config.absolute())) if config else "",
        listen=f"{listen}:{settings.port}",
        user="" if options.user else options.run_as,
        calls_out=bool(settings.oidc.issuer),
        home=Path(sys.executable).is_relative_to("/home") or Path(sys.executable).is_relative_to("/root"),
    )
    directory = options.unit_dir or _unit_directory(options.user)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (directory / name).write_text(text)
            print(f"wrote {directory / name}")
    except OSError as error:
        raise StateError(f"cannot write the units to {directory}: {error.strerror}") from None
    systemctl = "systemctl --user" if options.user else "systemctl"
    print(f"next: {systemctl} daemon-reload && {systemctl} enable --now {' '.join(UNITS)}")


def render(
    *, command: list[str], config: str, listen: str, user: str, home: bool, calls_out: bool
) -> dict[str, str]:
    """Return the units' texts by their names.

    Args:
        command: the words of the command that starts the server.
        config: the ``Environment=`` line that names the settings file; empty without one.
        listen: the address of the socket, as ``ListenStream=`` takes it.
        user: the user that the service runs as; empty in a user's own manager.
        home: whether the program is in a home directory, which the service must then be able to read.
        calls_out: whether the server opens connections of its own, as it does to an OpenID provider.
    """
    values = {
        "command": " ".join(shlex.quote(word) for word in command),
        "config": config,
        "listen": listen,
        "user": f"User={user}" if user else "",
        "protect_home": "read-only" if home or not user else "yes",
        "private_network": "no" if calls_out else "yes",
        "target": "multi-user.target" if user else "default.target",
    }
    return {name: Template((TEMPLATES / name).read_text()).substitute(values) for name in UNITS}


def _environment(name: str, value: str) -> str:
    """Return the line that sets a variable (systemd.syntax(7), systemd.unit(5) on specifiers)."""
    for sign, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%")):
        value = value.replace(sign, written)
    return f'Environment="{name}={value}"'


def _program() -> list[str]:
    """Return the words of the command that starts this program.

    The interpreter's path is kept as it was called, perhaps through a link, so that the unit starts what the link
    names later.
    """
    script = Path(sys.argv[0])
    if script.name == "main.py":
        return [sys.executable, str(script.absolute())]
    return [sys.executable, "-m", "sse_app"]


def _unit_directory(of_user: bool) -> Path:
    if not of_user:
        return Path("/etc/systemd/system")
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "systemd/user"
