"""The settings: their types and defaults, and where they are read from."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as PydanticSettingsError

from sse_app.channels import ChannelPattern, is_internal
from sse_app.errors import InvalidChannel, SettingsError

ENV_PREFIX = "SSE_APP_"
OTHER_VARIABLES = frozenset({"SSE_APP_CONFIG", "SSE_APP_URL", "SSE_APP_TOKEN", "SSE_APP_SUCCESSOR"})
"""Variables with our prefix that are no settings: they speak to commands."""

DEFAULT_FILES = (Path("config/sse_app.toml"), Path("/etc/sse_app/sse_app.toml"))


def _pattern(text: str) -> str:
    try:
        ChannelPattern(text.replace("{sub}", "x"))
    except InvalidChannel as error:
        raise ValueError(str(error)) from None
    return text


def _public_pattern(text: str) -> str:
    if is_internal(text):
        raise ValueError("channels that begin with sse_app are the server's own")
    return _pattern(text)


def _origin(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("http", "https") or not rest or any(c in rest for c in "/?#*@ "):
        raise ValueError("an origin is scheme://host[:port] without a path, e.g. http://localhost:3020")
    return text


def _event_log(text: str) -> str:
    if text.startswith("redis:"):
        raise ValueError("Redis is not supported by this version; use 'sqlite:'")
    if text != "memory:" and not text.startswith("sqlite:"):
        raise ValueError("must be 'sqlite:', 'sqlite:/path/to/file' or 'memory:'")
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
PublicPattern = Annotated[str, AfterValidator(_public_pattern)]
Origin = Annotated[str, AfterValidator(_origin)]
EventLogURL = Annotated[str, AfterValidator(_event_log)]
Count = Annotated[int, Field(ge=1, le=2**31)]
Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86_400, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Keepalive(_Section):
    """Pings, and what follows from them."""

    ping_interval: Annotated[float, Field(ge=0.1, le=3600, allow_inf_nan=False)] = 30.0


class History(_Section):
    """How much of each channel is kept."""

    size: Count = 10_000
    age: Seconds = 86_400.0


class StreamSettings(_Section):
    """What streams are told."""

    retry: Annotated[int, Field(ge=1, le=3_600_000)] = 3000
    drain_time: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 5.0


class Limits(_Section):
    """Upper bounds."""

    streams: Count = 20_000
    streams_per_user: Count = 100
    streams_per_address: Count = 1000
    channels_per_stream: Count = 32
    backlog_bytes: Count = 1_048_576
    body_bytes: Count = 1_048_576
    batch_events: Count = 1000
    publish_rate: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0


class Auth(_Section):
    """Tokens."""

    issuer: Annotated[str, Field(min_length=1)] = "sse_app"
    audience: Annotated[str, Field(min_length=1)] = "sse_app"
    access_lifetime: Annotated[int, Field(ge=1, le=30 * 86_400)] = 3600
    stream_lifetime: Annotated[int, Field(ge=1, le=86_400)] = 600
    longest_lifetime: Annotated[int, Field(ge=1, le=366 * 86_400)] = 30 * 86_400
    session_idle: Annotated[int, Field(ge=1, le=366 * 86_400)] = 7 * 86_400
    session_lifetime: Annotated[int, Field(ge=1, le=366 * 86_400)] = 30 * 86_400
    own_channels: tuple[Pattern, ...] = ("user.{sub}.**",)
    keys_dir: str = ""


class Granted(_Section):
    """What the members of a provider's group may do."""

    subscribe: tuple[Pattern, ...] = ()
    publish: tuple[Pattern, ...] = ()


class OIDC(_Section):
    """An OpenID provider whose access tokens are taken for stream tokens; none where the issuer is empty."""

    issuer: str = ""
    audience: str = ""
    jwks_url: str = ""
    subject_claim: Annotated[str, Field(min_length=1)] = "sub"
    subject_prefix: str = "oidc:"
    groups_claim: Annotated[str, Field(min_length=1)] = "groups"
    grants: dict[str, Granted] = {}

    @model_validator(mode="after")
    def _complete(self) -> OIDC:
        if self.issuer and not (self.audience and self.jwks_url.startswith(("https://", "http://"))):
            raise ValueError("with an issuer, audience and jwks_url (http or https) are needed too")
        return self


class Socket(_Section):
    """Kernel options of the listening and the streams' sockets."""

    backlog: Count = 4096
    notsent_lowat: Annotated[int, Field(ge=0, le=2**30)] = 16_384
    keepalive_idle: Annotated[int, Field(ge=0, le=32_767)] = 60
    keepalive_interval: Annotated[int, Field(ge=0, le=32_767)] = 15
    keepalive_count: Annotated[int, Field(ge=0, le=127)] = 4
    user_timeout: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 0.0


class Log(_Section):
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Metrics(_Section):
    """Who may read the metrics."""

    allow: tuple[IPv4Network | IPv6Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


class Settings(BaseSettings):
    """All settings; `config/sse_app.toml` says what each is for.

    Made directly, it takes its values from the arguments only; `load_settings` reads file and environment.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    state_dir: Path = Path("./var")
    event_log: EventLogURL = "sqlite:"
    cors_origins: tuple[Origin, ...] = ()
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    channels: tuple[PublicPattern, ...] = ("dashboard", "alerts", "training", "backtest", "user.**")
    keepalive: Keepalive = Keepalive()
    history: History = History()
    stream: StreamSettings = StreamSettings()
    limits: Limits = Limits()
    auth: Auth = Auth()
    oidc: OIDC = OIDC()
    socket: Socket = Socket()
    log: Log = Log()
    metrics: Metrics = Metrics()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take nothing from the surroundings unasked."""
        return (init_settings,)


class _FromEnvironment(Settings):
    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override what the file says; flags are laid over both by the caller."""
        return env_settings, init_settings


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
    _refuse_unknown_variables()
    try:
        below_flags = _FromEnvironment(**values).model_dump(exclude_unset=True)
        return Settings(**_merge(below_flags, _nest(flags or {})))
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None
    except PydanticSettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        raise SettingsError(
            f"bad value for the setting {field[1] if field else '?'}: "
            f"{ENV_PREFIX}{field[1].upper() if field else '…'} must be JSON"
        ) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not TOML: {error}") from None


def _refuse_unknown_variables() -> None:
    for name in sorted(os.environ):
        if name.startswith(ENV_PREFIX) and name not in OTHER_VARIABLES:
            section, *rest = name.removeprefix(ENV_PREFIX).lower().split("__")
            field = Settings.model_fields.get(section)
            nested = field and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            if field is None or (rest and not nested):
                raise SettingsError(f"unknown setting in the environment: {name}")


def _nest(flags: Mapping[str, object]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flags.items():
        *path, last = name.split(".")
        here = nested
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value
    return nested


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in first["loc"] if "[" not in str(part))  # no union members
    if first["type"] == "extra_forbidden":
        return f"unknown setting: {name}"
    message = first["msg"].removeprefix("Value error, ")
    return f"bad value for the setting {name}: {message[0].lower()}{message[1:]} (got {first['input']!r})"
