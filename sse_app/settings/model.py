"""The settings: their types, bounds and defaults; `config/sse_app.toml` says what each is for.

msgspec checks them: pydantic takes ten times as long to load, longer than all the rest of this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sse_app.core.errors import SettingsError
from sse_app.settings.explain import Problem, TextOrTable, find_problem, find_unwritable, parse
from sse_app.settings.types import (
    ClientPattern,
    EventLogURL,
    EventType,
    HostName,
    Network,
    NodeName,
    Origin,
    Pattern,
    PostgresURL,
)


def _explained(problem: Problem | None, kind: type) -> str:
    """Return what is wrong, with the setting that was probably meant where there is none of that name."""
    if problem is not None and not problem.reason:
        from sse_app.settings.suggestions import meant  # only where something is wrong

        if name := meant(problem.name, kind):
            return f"{problem} (did you mean {name}?)"
    return str(problem)


class _Checked(msgspec.StructMeta):
    """Has a section made directly checked like one from a file."""

    def __call__(cls, /, **values: Any) -> Any:
        if problem := find_unwritable(values):
            raise SettingsError(_explained(problem, cls))
        try:
            return msgspec.convert(values, cls, strict=False, dec_hook=parse)
        except msgspec.ValidationError:
            raise SettingsError(_explained(find_problem(values, cls), cls)) from None


class Section(msgspec.Struct, metaclass=_Checked, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings that belong together.

    Raises:
        SettingsError: a name is unknown or a value is bad.
    """


MOST_WORKERS = 256
"""How many workers there may be: their numbers are part of those of streams (`streams.numbers`)."""

Count = Annotated[int, Meta(ge=1, le=2**31)]
Seconds = Annotated[float, Meta(gt=0, le=10 * 365 * 86_400)]
Text = Annotated[str, Meta(min_length=1)]
Member = Annotated[str, Meta(min_length=1, max_length=255)]


class ChannelSettings(Section, frozen=True, omit_defaults=True):
    """What is configured for the channels of a pattern."""

    pattern: ClientPattern
    history_size: Count | None = None
    history_age: Seconds | None = None
    public: bool = False
    types: Annotated[tuple[EventType, ...], Meta(min_length=1, max_length=256)] | None = None
    stored: bool = True
    last_value_only: bool = False
    conflate: Member | None = None

    def __post_init__(self) -> None:
        """Check what excludes each other."""
        if self.last_value_only and (self.history_size or self.conflate):
            raise ValueError("last_value_only excludes history_size and conflate: the history is one event")
        if not self.stored and (
            self.history_size or self.history_age or self.last_value_only or self.conflate
        ):
            raise ValueError(
                "stored = false excludes history_size, history_age, last_value_only and conflate: there is no history"
            )


if TYPE_CHECKING:
    Channels = str | ChannelSettings
else:

    class Channels(TextOrTable):
        """A pattern of channels that are configured, alone or with what is configured for them."""

        text = ClientPattern
        table = ChannelSettings


class KeepaliveSettings(Section, frozen=True):
    """Pings, and what follows from them."""

    ping_interval: Annotated[float, Meta(ge=0.1, le=3600)] = 30.0


class History(Section, frozen=True):
    """How much of each channel is kept."""

    size: Count = 10_000
    age: Seconds = 86_400.0


class StreamSettings(Section, frozen=True):
    """When clients reconnect, and how long a drain takes."""

    retry: Annotated[int, Meta(ge=1, le=3_600_000)] = 3000
    drain_time: Annotated[float, Meta(ge=0, le=3600)] = 5.0


class Limits(Section, frozen=True):
    """Upper bounds."""

    streams: Count = 20_000
    streams_per_user: Count = 100
    streams_per_address: Count = 1000
    connections: Count = 4096
    connections_per_address: Count = 256
    channels_per_stream: Count = 32
    last_events: Count = 1000
    backlog_bytes: Count = 1_048_576
    body_bytes: Count = 1_048_576
    batch_events: Count = 1000
    publish_rate: Annotated[float, Meta(ge=0, le=1e9)] = 0.0


LONGEST_LIFETIME = 366 * 86_400
"""The longest lifetime that ``auth.longest_lifetime`` can allow a token, in seconds."""


class Auth(Section, frozen=True):
    """Tokens."""

    issuer: Text = "sse_app"
    audience: Text = "sse_app"
    access_lifetime: Annotated[int, Meta(ge=1, le=30 * 86_400)] = 3600
    stream_lifetime: Annotated[int, Meta(ge=1, le=86_400)] = 600
    longest_lifetime: Annotated[int, Meta(ge=1, le=LONGEST_LIFETIME)] = 30 * 86_400
    session_idle: Annotated[int, Meta(ge=1, le=366 * 86_400)] = 7 * 86_400
    session_lifetime: Annotated[int, Meta(ge=1, le=366 * 86_400)] = 30 * 86_400
    own_channels: tuple[Pattern, ...] = (Pattern("user.{sub}.**"),)
    keys_dir: str = ""
    keys_seal: str = ""

    def __post_init__(self) -> None:
        """Check what excludes each other."""
        if self.keys_dir and self.keys_seal:
            raise ValueError("keys are either in keys_dir, or in the database, sealed with keys_seal")


class Granted(Section, frozen=True):
    """What the members of a provider's group may do."""

    subscribe: tuple[Pattern, ...] = ()
    publish: tuple[Pattern, ...] = ()


class OIDC(Section, frozen=True):
    """An OpenID provider whose access tokens are taken for stream tokens; none where the issuer is empty."""

    issuer: str = ""
    audience: str = ""
    clients: tuple[Text, ...] = ()
    jwks_url: str = ""
    subject_claim: Text = "sub"
    subject_prefix: str = "oidc:"
    groups_claim: Text = "groups"
    grants: dict[str, Granted] = {}

    def __post_init__(self) -> None:
        """Check what belongs together."""
        if self.issuer and not (self.audience and self.jwks_url.startswith(("https://", "http://"))):
            raise ValueError("with an issuer, audience and jwks_url (http or https) are needed too")


class SocketSettings(Section, frozen=True):
    """Kernel options of the listening and the streams' sockets."""

    backlog: Count = 4096
    notsent_lowat: Annotated[int, Meta(ge=0, le=2**30)] = 16_384
    keepalive_idle: Annotated[int, Meta(ge=0, le=32_767)] = 60
    keepalive_interval: Annotated[int, Meta(ge=0, le=32_767)] = 15
    keepalive_count: Annotated[int, Meta(ge=0, le=127)] = 4
    user_timeout: Annotated[float, Meta(ge=0, le=86_400)] = 0.0


class Postgres(Section, frozen=True):
    """How the log on PostgreSQL is reached, where ``event_log`` names one."""

    connections: Annotated[int, Meta(ge=1, le=100)] = 4
    timeout: Annotated[float, Meta(ge=0.5, le=60)] = 5.0
    listen_url: PostgresURL = PostgresURL("")


class Log(Section, frozen=True):
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class MetricsSettings(Section, frozen=True):
    """Who may read the metrics."""

    allow: tuple[Network, ...] = (Network("127.0.0.0/8"), Network("::1/128"))


class Settings(Section, frozen=True):
    """All settings. Made directly, it takes its values from the arguments only."""

    host: Text = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    state_dir: Path = Path("./var")
    event_log: EventLogURL = EventLogURL("sqlite:")
    workers: Annotated[int, Meta(ge=1, le=MOST_WORKERS)] | Literal["auto"] = 1
    node: NodeName = NodeName("")
    hosts: tuple[HostName, ...] = ()
    cors_origins: tuple[Origin, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    channels: tuple[Channels, ...] = tuple(
        map(ClientPattern, ("dashboard", "alerts", "training", "backtest", "user.**"))
    )
    demo: bool = False
    keepalive: KeepaliveSettings = KeepaliveSettings()
    history: History = History()
    postgres: Postgres = Postgres()
    stream: StreamSettings = StreamSettings()
    limits: Limits = Limits()
    auth: Auth = Auth()
    oidc: OIDC = OIDC()
    socket: SocketSettings = SocketSettings()
    log: Log = Log()
    metrics: MetricsSettings = MetricsSettings()


def plain(settings: Section) -> dict[str, Any]:
    """Return settings as values that JSON has."""
    values: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(settings, enc_hook=str))
    return values
