"""Where the settings are read from: a file, the environment and flags, each overriding the one before."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sse_app.core.errors import SettingsError
from sse_app.settings.model import Section, Settings

ENV_PREFIX = "SSE_APP_"
OTHER_VARIABLES = frozenset(
    {
        "SSE_APP_CONFIG",
        "SSE_APP_URL",
        "SSE_APP_TOKEN",
        "SSE_APP_SUCCESSOR",
        "SSE_APP_STAND_IN",
        "SSE_APP_WORKER",
        "SSE_APP_SUPERVISOR",
    }
)
"""Variables with our prefix that are not settings: commands and processes of this package read them."""

PROXY_VARIABLES = frozenset(
    {
        "SSE_APP_SITE",
        "SSE_APP_UPSTREAM",
        "SSE_APP_TLS",
        "SSE_APP_CADDY_ADMIN",
        "SSE_APP_HTTP_PORT",
        "SSE_APP_ACCESS_LOG",
    }
)
"""Variables of ``config/Caddyfile``, which may stand in the same environment."""

_OF_A_SERVICE = re.compile(
    r"SSE_APP_(?:[A-Z0-9_]+_)?"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
"""What Kubernetes gives every container for a Service whose name begins with sse-app ("Discovering services")."""

_OF_A_LINK = re.compile(r"SSE_APP_(?:[A-Z0-9_]+_)?(?:NAME|ENV_\w+)")
"""What a link of Docker adds to these ("Legacy container links"): the name's value begins with a slash."""

_URL = re.compile(r"(?:tcp|udp|sctp)://")

DEFAULT_FILES = (Path("config/sse_app.toml"), Path("/etc/sse_app/sse_app.toml"))


def find_settings_file(path: Path | None) -> Path | None:
    """Return the settings file in force: the one named, by flag or ``SSE_APP_CONFIG``, else a default one."""
    if path is None and (named := os.environ.get(ENV_PREFIX + "CONFIG")):
        path = Path(named)
    return path or next((file for file in DEFAULT_FILES if file.is_file()), None)


def load_settings(path: Path | None = None, flags: Mapping[str, object] | None = None) -> Settings:
    """Return the settings of file, environment and flags, the later overriding the earlier.

    Args:
        path: the settings file; None looks for it as `find_settings_file` does.
        flags: values by their dotted names, e.g. ``{"keepalive.ping_interval": "15"}``.

    Raises:
        SettingsError: a key is unknown or a value is bad; one line that names it.
    """
    file = find_settings_file(path)
    values = _read(file) if file else {}
    values = _merge(values, _environment())
    return Settings(**_merge(values, _nest(flags or {})))


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{file} is not TOML: {error}") from None


def passed_over() -> list[str]:
    """Return the variables of the environment that have our prefix and are meant for something else."""
    return sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and _is_foreign(name))


def _is_foreign(variable: str) -> bool:
    """Return whether a variable is of a kind that others make, and no setting."""
    if variable in PROXY_VARIABLES:
        return True
    name, value = variable.removeprefix(ENV_PREFIX).lower(), os.environ[variable]
    if isinstance(getattr(Settings(), name.partition("__")[0], None), Section):
        return False  # a Service named sse-app-limits-… has one underscore there
    if _OF_A_SERVICE.fullmatch(variable):
        return True
    if name.endswith("port") and _URL.match(value):
        return name == "port" or name.endswith("_port")
    return bool(_OF_A_LINK.fullmatch(variable)) and (value.startswith("/") or "_env_" in f"_{name}")


def _environment() -> dict[str, Any]:
    """Return the settings in the environment; single settings override the variable of their whole section."""
    values: dict[str, Any] = {}
    for variable in sorted(os.environ):
        if not variable.startswith(ENV_PREFIX) or variable in OTHER_VARIABLES or _is_foreign(variable):
            continue
        path = variable.removeprefix(ENV_PREFIX).lower().split("__")
        default: object = Settings()
        for name in path:
            if not isinstance(default, Section) or name not in default.__struct_fields__:
                raise SettingsError(_unknown(variable, ".".join(path)))
            default = getattr(default, name)
        value: object = os.environ[variable]
        if isinstance(default, (Section, dict, tuple)):
            value = _json(variable)
        values = _merge(values, _nest({".".join(path): value}))
    return values


def _unknown(variable: str, name: str) -> str:
    from sse_app.settings.suggestions import meant  # only where something is wrong

    line = f"unknown setting in the environment: {variable}"
    known = meant(name, Settings)
    return f"{line} (did you mean {ENV_PREFIX}{known.upper().replace('.', '__')}?)" if known else line


def _json(variable: str) -> object:
    try:
        return json.loads(os.environ[variable])
    except (ValueError, RecursionError):
        name = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        raise SettingsError(f"bad value for the setting {name}: {variable} must be JSON") from None


def _nest(flags: Mapping[str, object]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flags.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        nested = _merge(nested, value)  # type: ignore[arg-type]  # it is a mapping after the loop
    return nested


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if both else value
    return merged
