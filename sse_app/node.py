"""The parts that handlers work with, made from the settings and wired together."""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sse_app.auth.accounts.accounts import Accounts
from sse_app.auth.accounts.login import Lifetimes, Login
from sse_app.auth.accounts.passwords import PasswordThreads
from sse_app.auth.accounts.sessions import SessionLimits, Sessions
from sse_app.auth.audit import Audit
from sse_app.auth.revocations import Revocations
from sse_app.auth.sqlite_store import AuthDatabase
from sse_app.auth.tokens.issuer import Tokens
from sse_app.auth.tokens.keyring import KeyRing
from sse_app.core.channels import ChannelPatterns
from sse_app.core.counters import Metrics
from sse_app.core.events import EventId
from sse_app.core.rate_limit import RateLimit
from sse_app.eventlog.base import EventLog, Retention
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.eventlog.sqlite.log import SqliteEventLog
from sse_app.monitoring.live_stats import Figures
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import StateDirectory
from sse_app.streams.admission import Admission
from sse_app.streams.enforcement import Enforcement
from sse_app.streams.hub import Hub
from sse_app.streams.keepalive import Keepalive
from sse_app.streams.publisher import Publisher
from sse_app.streams.pump import Pump

if TYPE_CHECKING:
    from sse_app.auth.tokens.oidc import Provider

RESERVED_FILES = 256
"""How many of the open files that the system allows are left for other things than streams."""

FAREWELL = 1.0
"""How many seconds streams may take to accept their last bytes at the end."""

_FIXED = ("host", "port", "state_dir", "event_log", "keepalive", "history", "socket")
"""Settings that a running server cannot change."""


class InProgress:
    """Counts what is going on: a context manager around each."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *exception: object) -> None:
        self.count -= 1


class Node:
    """Everything that lives as long as the server does.

    Args:
        settings: what to make it from.
        locked: whether to keep other servers out of the state directory.

    Raises:
        StateError: the state directory cannot be used, or another server uses it.
    """

    def __init__(self, settings: Settings, *, locked: bool = True) -> None:
        self.settings = settings
        self.started_at = time.monotonic()
        self.channels = ChannelPatterns(settings.channels)
        self.state = StateDirectory(settings.state_dir)
        if locked:
            self.state.lock()
        auth = settings.auth
        self.auth_database = AuthDatabase(self.state.accounts)
        self.revocations = Revocations(self.auth_database)
        self.tokens = issuer_of(settings, self.state, self.revocations)
        self.audit = Audit(self.auth_database)
        self.accounts = Accounts(self.auth_database, auth.longest_lifetime)
        self.sessions = Sessions(self.auth_database, _session_limits(settings))
        self.password_threads = PasswordThreads()
        self.login = Login(
            self.auth_database,
            self.accounts,
            self.sessions,
            self.password_threads,
            self.tokens,
            self.audit,
            Lifetimes(auth.access_lifetime, auth.stream_lifetime),
            auth.own_channels,
        )
        self.provider = _provider(settings)
        self.publish_rate = RateLimit(settings.limits.publish_rate)
        self.eventlog = make_event_log(settings, self.state)
        self.opening = InProgress()
        """The streams that are being opened."""
        self.ready = False
        self.draining = False

    def prepare(self) -> None:
        """Make what streams can be registered with, without the event log; must be called on the event loop."""
        settings = self.settings
        self.hub = Hub(
            self.eventlog, backlog_limit=settings.limits.backlog_bytes, retry=settings.stream.retry
        )
        self.keepalive = Keepalive(self.hub, settings.keepalive.ping_interval)
        self.publisher = Publisher(self.eventlog, self.channels, settings.limits.batch_events)
        self.metrics = Metrics()
        self.pump = Pump(self.hub, self.keepalive)
        self.admission = Admission(
            self.hub,
            self.keepalive,
            self.publisher,
            self.tokens,
            self.metrics,
            settings.limits,
            _stream_capacity(settings),
        )
        self.enforcement = Enforcement(
            self.hub,
            self.auth_database,
            self.revocations,
            self.tokens,
            keys_directory(settings, self.state),
            self.audit,
        )
        self.figures = Figures(self)

    async def start(self, after: EventId | None = None) -> None:
        """Open the event log and begin to serve.

        Args:
            after: the position up to which streams of an earlier process have their events; see `Hub.begin`.

        Raises:
            StateError: the event log cannot be used.
        """
        await self.eventlog.open()
        if not hasattr(self, "hub"):
            self.prepare()
        self.hub.begin(after)
        self.keepalive.start()
        self.enforcement.start()
        self.figures.start()
        self.ready = True

    def reload(self, settings: Settings) -> list[str]:
        """Put settings in force without touching a stream, and return the names of those that need a restart.

        Raises:
            StateError: the keys cannot be used; nothing is changed.
        """
        kept = [name for name in _FIXED if getattr(settings, name) != getattr(self.settings, name)]
        keys = KeyRing.load(keys_directory(settings, self.state))
        self.settings = msgspec.structs.replace(
            settings, **{name: getattr(self.settings, name) for name in kept}
        )
        settings = self.settings
        auth = settings.auth
        self.channels = ChannelPatterns(settings.channels)
        self.tokens.use(keys)
        self.tokens.longest = auth.longest_lifetime
        self.accounts.longest = auth.longest_lifetime
        self.sessions.limits = _session_limits(settings)
        self.login.lifetimes = Lifetimes(auth.access_lifetime, auth.stream_lifetime)
        self.login.own_channels = auth.own_channels
        self.provider = _provider(settings)
        self.publish_rate = RateLimit(settings.limits.publish_rate)
        self.publisher.use(self.channels, settings.limits.batch_events)
        self.hub.backlog_limit = settings.limits.backlog_bytes
        self.hub.retry = settings.stream.retry
        self.admission.use(settings.limits, _stream_capacity(settings))
        return kept

    async def stop(self, drain_time: float = 0.0) -> None:
        """End all streams with ``closing``, write what is queued, and let go of everything.

        Publishing goes on until the event log closes, which is last.

        Args:
            drain_time: over how many seconds the ends of many streams are spread.
        """
        self.draining = True
        self.ready = False
        if hasattr(self, "hub"):
            self.admission.stop()
            await self.hub.drain("shutdown", drain_time)
            with suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    await self.hub.emptied()
            self.figures.stop()
            self.keepalive.stop()
            await self.hub.close()
            await self.enforcement.stop()
        await self.eventlog.close()
        self.password_threads.close()
        self.auth_database.close()
        self.state.unlock()


def _session_limits(settings: Settings) -> SessionLimits:
    auth = settings.auth
    return SessionLimits(
        idle=auth.session_idle,
        absolute=auth.session_lifetime,
        issued=max(auth.access_lifetime, auth.stream_lifetime),
        minted=auth.longest_lifetime,
    )


def _provider(settings: Settings) -> Provider | None:
    """Return the OpenID provider, where there is one."""
    if not settings.oidc.issuer:
        return None
    from sse_app.auth.tokens.oidc import Provider  # it brings PyJWT along, for which a restart has no time

    return Provider(settings.oidc, settings.auth.longest_lifetime)


def _stream_capacity(settings: Settings) -> int:
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(settings.limits.streams, max(1, open_files - RESERVED_FILES))


def issuer_of(settings: Settings, state: StateDirectory, revocations: Revocations | None = None) -> Tokens:
    """Return the token issuer of a state directory, whose keys are made at the first use."""
    return Tokens(
        KeyRing.load(keys_directory(settings, state)),
        issuer=settings.auth.issuer,
        audience=settings.auth.audience,
        longest=settings.auth.longest_lifetime,
        revocations=revocations,
    )


def keys_directory(settings: Settings, state: StateDirectory) -> Path:
    """Return the directory of the keys."""
    return Path(settings.auth.keys_dir) if settings.auth.keys_dir else state.keys


def event_log_path(settings: Settings, state: StateDirectory) -> Path | None:
    """Return the file of the event log, or None where it is in memory."""
    if settings.event_log == "memory:":
        return None
    return Path(settings.event_log.removeprefix("sqlite:") or state.events)


def make_event_log(settings: Settings, state: StateDirectory) -> EventLog:
    """Return the event log that the settings name, not yet open."""
    retention = Retention(settings.history.size, settings.history.age)
    path = event_log_path(settings, state)
    return MemoryEventLog(retention) if path is None else SqliteEventLog(path, retention)
