"""A node: the parts of one server, made from the settings and wired together."""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from sse_app.auth.accounts.accounts import Accounts
from sse_app.auth.accounts.login import Login
from sse_app.auth.accounts.passwords import PasswordThreads
from sse_app.auth.accounts.sessions import Sessions
from sse_app.auth.audit import Audit
from sse_app.auth.factory import (
    issuer_of,
    issuer_with,
    keys_directory,
    make_auth_store,
    provider_of,
    require_auth_store,
    require_known_store,
    sealed_keys_of,
)
from sse_app.auth.revocations import Revocations
from sse_app.auth.tokens.keyring import KeyRing, load_keys
from sse_app.cluster.factory import make_cluster
from sse_app.cluster.login_attempts import LoginAttempts
from sse_app.core.addresses import LOOPBACK, UNIX_SOCKET, is_in
from sse_app.core.byte_budget import ByteBudget
from sse_app.core.counters import InProgress, Metrics
from sse_app.core.events import EventId
from sse_app.core.lifecycle import Lifecycle
from sse_app.core.rate_limit import RateLimit
from sse_app.core.repeated_event import RepeatedEvent
from sse_app.eventlog.factory import event_log_path, kept_of, make_event_log, stored_event_log
from sse_app.http.open_connections import ConnectionLimits
from sse_app.monitoring.connection_table import ConnectionTable
from sse_app.monitoring.live_stats import LiveStats
from sse_app.monitoring.readiness import Readiness
from sse_app.monitoring.status import Status
from sse_app.settings.channels import rules_of
from sse_app.settings.database import make_database
from sse_app.settings.model import Settings
from sse_app.settings.workers import worker_count
from sse_app.storage.ownership import require_private_database
from sse_app.storage.state_dir import StateDirectory
from sse_app.streams.admission import Admission
from sse_app.streams.elsewhere import StreamsElsewhere
from sse_app.streams.enforcement import Enforcement
from sse_app.streams.hub import Hub
from sse_app.streams.keepalive import Keepalive
from sse_app.streams.kicks import Kicks
from sse_app.streams.passing_on import PassingOn
from sse_app.streams.presence import Presence
from sse_app.streams.publisher import Publisher
from sse_app.streams.pump import Pump
from sse_app.streams.renewal import Renewal
from sse_app.streams.rules_in_database import RulesInDatabase

if TYPE_CHECKING:
    from sse_app.monitoring.prometheus import NodeMetrics

RESERVED_FILES = 256
"""How many of the open files that the system allows are kept free for other things than streams."""

OWN_FILES = 96
"""How many of these are kept for the process itself: databases, keys, the event loop, a handover."""

FEWEST_CONNECTIONS = 8
"""How many connections that are no streams there may be at least."""

LARGE_BODIES_BYTES = 64 * 1024 * 1024
"""How many bytes bodies of requests take together beyond those that each may have before its token is looked at."""

DRAIN_TIMEOUT = 1.0
"""How many seconds streams may take to accept their ``closing`` when the node stops."""

log = logging.getLogger(__name__)

_FIXED = (
    "host",
    "port",
    "state_dir",
    "event_log",
    "postgres",
    "node",
    "demo",
    "keepalive",
    "history",
    "socket",
)
"""Settings that a running server cannot change."""

_FIXED_WITHIN = {"auth": ("issuer", "audience", "keys_seal"), "log": ("format",)}
"""Those of tables that it can change otherwise."""


class Node:
    """Builds the parts and holds them; each part is given those it works with, and none is given the node.

    What handlers need of the settings, and no part does, they read from `settings`.

    Args:
        settings: what to make the parts from.
        locked: whether to lock the state directory against other servers.
        worker: the number of this process among several on the same state directory; 0 where it is alone.

    Raises:
        StateError: the state directory cannot be used, or another server uses it.
    """

    def __init__(self, settings: Settings, *, locked: bool = True, worker: int = 0) -> None:
        self.settings = settings
        self.lifecycle = Lifecycle()
        self.channels = rules_of(settings.channels)
        self.state = StateDirectory(settings.state_dir, worker=worker)
        self.database = make_database(settings)
        """Keeps the log, accounts and nodes of several machines; None where files keep them."""
        self.cluster = make_cluster(self.state, settings, self.database)
        auth = settings.auth
        self.auth_store = make_auth_store(self.state, self.database)
        self._auth_is_open = False
        self.revocations = Revocations(self.auth_store, auth.longest_lifetime)
        with self.state.starting():
            # First of all: a first start that is cut short must not look like one whose accounts were lost.
            if self.database is None:
                require_auth_store(self.state, stored_event_log(settings.event_log, self.state))
            if locked:
                self.state.lock()
            self._sealed_keys = sealed_keys_of(auth, self.auth_store)
            if self._sealed_keys is None:
                self.tokens = issuer_of(auth, self.state, self.revocations)
            else:  # until the database is open
                self.tokens = issuer_with(KeyRing.of_none(), auth, self.revocations)
        self.provider = provider_of(settings.oidc, auth)
        self.audit = Audit(self.auth_store)
        self.password_threads = PasswordThreads()
        self.accounts = Accounts(self.auth_store, self.password_threads, auth)
        self.sessions = Sessions(self.auth_store, auth)
        self.login = Login(self.accounts, self.sessions, self.tokens, self.audit, auth, self._nodes)
        self._login_attempts = LoginAttempts(self.cluster, self.login.throttle)
        limits = settings.limits
        kept = kept_of(settings.history, self.channels)
        self.eventlog = make_event_log(settings.event_log, kept, self.state, self.database)
        self.cluster.when_lost(self.eventlog.look)
        self._rules_in_database = RulesInDatabase(self.database, self.channels, limits)
        self.publish_rate = RateLimit(limits.publish_rate, self._nodes)
        self.large_bodies = ByteBudget(LARGE_BODIES_BYTES)
        self.hub = Hub(
            self.eventlog, self.channels, backlog_limit=limits.backlog_bytes, retry=settings.stream.retry
        )
        self.passing_on = PassingOn(self.hub, self.cluster)
        self.publisher = Publisher(self.eventlog, self.channels, limits, self.passing_on)
        self.most_publishing = _most_publishing(settings)
        """How many requests may wait with what they publish."""
        self.keepalive = Keepalive(self.hub, settings.keepalive, settings.socket.user_timeout)
        self._elsewhere = StreamsElsewhere(self.cluster, self.hub, limits)
        self._catching_up: asyncio.Task[None] | None = None
        self.metrics = Metrics()
        self.pump = Pump(self.hub, self.keepalive)
        self.admission = Admission(
            self.hub,
            self.keepalive,
            self.publisher,
            self.tokens,
            self.metrics,
            self.lifecycle,
            limits,
            _stream_capacity(settings),
            self._elsewhere,
        )
        self.enforcement = Enforcement(
            self.hub,
            self.auth_store,
            self.revocations,
            self.tokens,
            self._sealed_keys or keys_directory(auth, self.state),
            self.audit,
            self.cluster,
        )
        self.kicks = Kicks(self.hub, self.enforcement, self.cluster)
        self.renewal = Renewal(self.hub, self.keepalive, self.revocations, self.publisher, self.cluster)
        self.untrusted_proxies: set[str] = set()
        """Networks that the log has named as those of proxies that are not trusted."""
        self.shortages = RepeatedEvent(log, logging.ERROR, "request_failed")
        """Requests for which there was no file descriptor, or no memory."""
        self.accounts_failures = RepeatedEvent(log, logging.ERROR, "accounts_unavailable")
        """Requests that needed accounts, sessions or revocations, which could not be read or written."""
        self.event_log_failures = RepeatedEvent(log, logging.ERROR, "event_log_unavailable")
        """Requests that needed the event log, which could not be read or written."""
        self.readiness = Readiness(self.lifecycle, self.eventlog, self.auth_store)
        self.opening = InProgress()
        """The streams that are being opened."""
        self.connections = ConnectionTable(self.hub, self.cluster)
        self.status = Status(self.hub, self.eventlog, self.channels, self.lifecycle, self.cluster)
        self.presence = Presence(self.hub, self.cluster)
        self.live_stats = LiveStats(
            self.hub, self.eventlog, self.metrics, self.channels, self.lifecycle, self.cluster
        )
        self.cluster.answer("metrics", self._metrics_for)

    async def prepare(self) -> None:
        """Do what takes time of `start`, while a process serves whose streams this one takes over.

        Raises:
            StateError: the store of auth or the event log cannot be used.
        """
        await self._open_auth()
        with self.state.starting():
            await self.eventlog.prepare()
        self.hub.sender.prepare()

    async def _open_auth(self) -> None:
        """Open the store of auth and learn what is revoked, unless that was done before."""
        if not self._auth_is_open:
            with self.state.starting():
                await self.auth_store.open()
            if self.database is not None:
                require_known_store(self.state, self.auth_store, self.database)
            if self._sealed_keys is not None:
                self.tokens.use_keys(await self._sealed_keys.load())
            await self.revocations.learn()
            self._auth_is_open = True

    async def start(self, after: EventId | None = None) -> None:
        """Open what is stored and begin to serve; the other nodes are told by `join`.

        Args:
            after: the position up to which streams of an earlier process have their events; see `Hub.begin`.

        Raises:
            StateError: the store of auth or the event log cannot be used.
        """
        await self._open_auth()
        with self.state.starting():
            await self.eventlog.open()
            await self.cluster.open()
            await self._rules_in_database.start()
        self.hub.number_from(self.cluster.number)
        self.hub.begin(after)
        self.keepalive.start()
        self.enforcement.start()
        self.live_stats.start()
        self.presence.start()
        self.lifecycle.ready = True

    def prometheus(self) -> NodeMetrics:
        """Return the metrics of this node, as Prometheus wants them; their module is loaded at the first use."""
        from sse_app.monitoring.prometheus import NodeMetrics

        return NodeMetrics(
            self.hub,
            self.keepalive,
            self.eventlog,
            self.metrics,
            self.passing_on,
            self.channels,
            self.settings.limits,
            self.lifecycle,
            self.readiness,
        )

    def _metrics_for(self, node: str, payload: Any) -> Any:
        return self.prometheus().families()

    async def join(self) -> None:
        """Answer the other nodes from now on, in the place of an earlier process of this node."""
        self.passing_on.start()
        await self.cluster.start()
        self._elsewhere.start()
        if self.cluster.name:
            self._catching_up = asyncio.create_task(self._catch_up())

    async def _catch_up(self) -> None:
        """Learn from the other nodes what counts for limits; one that does not answer must not hold the start up."""
        await self._elsewhere.catch_up()
        await self._login_attempts.catch_up()

    def _nodes(self) -> int:
        """Return how many nodes share a limit on what is done with each."""
        return 1 + len(self.cluster.peers())

    def reload(self, settings: Settings) -> list[str]:
        """Put settings in force without touching a stream, and return the names of those that need a restart.

        Raises:
            StateError: the keys cannot be used, or a file is not this user's alone; nothing is changed.
        """
        # A parent changes the number of its workers; a process that serves alone has none.
        names = _FIXED if self.state.worker else (*_FIXED, "workers")
        settings, kept = _with_what_stays(self.settings, settings, names)
        auth, limits = settings.auth, settings.limits
        # What can fail comes first, so that either all settings are put in force or none.
        channels = rules_of(settings.channels)
        provider = provider_of(settings.oidc, auth)
        directory = keys_directory(auth, self.state) if self._sealed_keys is None else None
        self.state.check()
        if (event_log := event_log_path(self.settings.event_log, self.state)) is not None:
            require_private_database(event_log)
        keys = self.tokens.keys if directory is None else load_keys(directory)
        self.settings = settings
        self.channels = channels
        self.provider = provider
        self.tokens.use(auth, keys)
        self.revocations.use(auth.longest_lifetime)
        self.accounts.use(auth)
        self.sessions.use(auth)
        self.login.use(auth)
        if directory is not None:
            self.enforcement.use(directory)
        self.eventlog.use(kept_of(self.settings.history, channels))
        self.publisher.use(channels, limits)
        self.most_publishing = _most_publishing(settings)
        self._rules_in_database.use(channels, limits)
        self.publish_rate.use(limits.publish_rate)
        self.hub.use(channels, backlog_limit=limits.backlog_bytes, retry=settings.stream.retry)
        self._elsewhere.use(limits)
        self.admission.use(limits, _stream_capacity(settings))
        self.admission.end_not_allowed()
        self.status.use(channels)
        self.live_stats.use(channels)
        return kept

    async def drain(self, drain_time: float) -> None:
        """End all streams with ``closing``, and write what is queued; requests are still answered.

        Args:
            drain_time: over how many seconds the ends of many streams are spread.
        """
        self.lifecycle.draining = True
        self.lifecycle.ready = False
        await self.hub.drain("shutdown", drain_time)
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                await self.hub.emptied()

    async def stop(self, drain_time: float = 0.0) -> None:
        """Drain, and close everything; also if it never started.

        Events can be published until the event log closes.

        Args:
            drain_time: as of `drain`.
        """
        if not self.lifecycle.draining:
            await self.drain(drain_time)
        self._elsewhere.stop()
        self.cluster.stop()
        if self._catching_up is not None:
            await self._catching_up
        self.live_stats.stop()
        self.presence.stop()
        self.keepalive.stop()
        await self.hub.close()
        await self.enforcement.stop()
        await self._rules_in_database.stop()
        await self.eventlog.close()
        self.password_threads.close()
        await self.auth_store.close()
        await self.cluster.close()
        self.state.unlock()


def _with_what_stays(now: Settings, wanted: Settings, names: Iterable[str]) -> tuple[Settings, list[str]]:
    """Return the settings that can be put in force, and the names of those that stay as they are now.

    Args:
        now: what is in force.
        wanted: what was read.
        names: settings and tables that cannot be changed at all.
    """
    stay: dict[str, Any] = {
        name: getattr(now, name) for name in names if getattr(wanted, name) != getattr(now, name)
    }
    kept = [*stay]
    for table, members in _FIXED_WITHIN.items():
        before, after = getattr(now, table), getattr(wanted, table)
        same = {
            name: getattr(before, name) for name in members if getattr(after, name) != getattr(before, name)
        }
        kept += [f"{table}.{name}" for name in same]
        stay[table] = msgspec.structs.replace(after, **same)
    return msgspec.structs.replace(wanted, **stay), kept


def _stream_capacity(settings: Settings) -> int:
    """Return how many streams may be open: the limit, or fewer where the system allows fewer open files."""
    files = _open_files() - RESERVED_FILES - _files_for_workers(settings)
    return min(settings.limits.streams, max(1, files))


def _files_for_workers(settings: Settings) -> int:
    """Return how many open files the connections to the other workers take: two to each."""
    return 2 * (worker_count(settings) - 1)


def connection_limits(settings: Settings) -> ConnectionLimits:
    """Return how many connections that are no streams there may be beside as many streams as there may be.

    One address has at most half of them, unless it is a proxy's: of this machine, a trusted one's, or at the other
    end of a Unix socket. Else all who come through it could be shut out by one of them.
    """
    limits, trusted = settings.limits, settings.trusted_proxies
    files = _open_files() - _stream_capacity(settings) - OWN_FILES - _files_for_workers(settings)
    total = max(FEWEST_CONNECTIONS, min(limits.connections, files))

    def is_shared(address: str) -> bool:
        return address == UNIX_SOCKET or is_in(address, LOOPBACK) or is_in(address, trusted)

    return ConnectionLimits(total, min(limits.connections_per_address, total // 2), is_shared)


def _most_publishing(settings: Settings) -> int:
    """Return how many requests may wait with what they publish: half of the connections are for all else, as probes."""
    return connection_limits(settings).total // 2


def _open_files() -> int:
    """Return how many open files the system allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
