"""A process that serves: it starts, listens, reloads, and ends with a graceful restart or by draining.

The listening sockets are its own, or systemd's (socket activation). At a restart or an upgrade every connection
stays open and is adopted by the next process (zero downtime).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from sse_app.app import SSEApp
from sse_app.core.background import BackgroundTasks
from sse_app.core.errors import SSEAppError, StateError
from sse_app.handover.cold import StoredHandover, store_handover
from sse_app.handover.fd_store import RECEIVING, SENDING, FdStore
from sse_app.handover.protocol import (
    LISTENING,
    LOCK,
    MAINPID_TIMEOUT,
    Attached,
    HandedOver,
    Successor,
    UpgradeFailed,
    attached_to,
)
from sse_app.handover.receiver import HandoverReceiver
from sse_app.handover.sender import REQUESTS_TIMEOUT, HandoverSender
from sse_app.handover.standby import (
    STANDBY_VARIABLE,
    bind_standby_socket,
    connect_standby,
    hand_over_to_standby,
    remove_standby_socket,
    run_standby,
)
from sse_app.handover.warm import Upgrade, started_as_successor, upgrade_obstacle
from sse_app.http.server import HTTPServer
from sse_app.node import connection_limits
from sse_app.process import logs, tuning
from sse_app.process.children import reap_orphans, wait_for_end
from sse_app.process.garbage_collection import garbage_collection
from sse_app.process.huge_pages import use_huge_pages
from sse_app.process.notifications import UPGRADE_FAILED, status
from sse_app.process.parent_link import PARENT_LINK, ParentLink, same
from sse_app.process.signals import END_SIGNALS, NO_LOG_FILE, ignore
from sse_app.process.sockets import addresses, bind, inherited_sockets
from sse_app.process.systemd import Systemd, inherited_descriptors
from sse_app.process.upgrade_outcome import forget_failure, tell_failure
from sse_app.process.workers import worker_number
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import own_directory
from sse_app.streams.connection import tune
from sse_app.streams.stream import Stream
from sse_app.version import VERSION

_SLOW_MODULE = "sse_app.auth.tokens.jose"
"""A module that is slow to load, and needed only when the first token comes."""

_METRICS_MODULE = "sse_app.monitoring.prometheus"
"""Another, needed for the metrics; where no file descriptor is left, it could not be loaded any more."""

SETTLING_TIME = 2.0
"""For how many seconds a process that has adopted streams, and watches them, does nothing else that can wait."""

log = logging.getLogger(__name__)


def run(settings: Settings, reread: Callable[[], Settings]) -> None:
    """Serve until a signal asks to stop.

    Args:
        settings: in force at first.
        reread: returns the settings as they are now, when SIGHUP asks for it.

    Raises:
        StateError: the state directory, the event log or the address cannot be used.
    """
    with garbage_collection(False):  # until it has started
        tuning.prepare()
        with asyncio.Runner(loop_factory=tuning.loop_factory()) as runner:
            runner.run(Server(settings, reread).serve())


class Server:
    """One process of the server, from its start to its end.

    Args:
        settings: in force at first.
        reread: returns the settings as they are now.
    """

    def __init__(self, settings: Settings, reread: Callable[[], Settings]) -> None:
        self._settings = settings
        self._reread = reread
        self._systemd = Systemd()
        self._worker = worker_number()
        self._is_standby = os.environ.pop(STANDBY_VARIABLE, "") != ""
        self._store: FdStore | None = None
        self._told = True
        """Whether systemd was told, where it has to be, that this process is the main process now."""
        self._ended = asyncio.Event()
        self._tasks = BackgroundTasks()
        self._started = asyncio.Event()
        self._ending = False
        self._upgrade: Upgrade | None = None
        self._upgraded = asyncio.Event()
        """Set unless an upgrade is under way."""
        self._upgraded.set()
        self._reload_due = False
        """Whether SIGHUP came too early."""
        self._adopted: list[Stream] = []
        """Streams of the process before that are yet to be watched."""

    async def serve(self) -> None:
        """Start, serve, and end."""
        inherited = inherited_descriptors()
        self._parent = ParentLink.among(inherited)
        """The way to the parent, where that is one of ours."""
        self._inherited = [one for one in inherited if one[0] not in (SENDING, RECEIVING, PARENT_LINK)]
        successor = started_as_successor()
        is_main = successor is None
        if successor is None:
            self._handle_end_signals()
            self._store = FdStore.of(inherited, self._systemd) if self._parent is None else None
            own = own_directory(self._settings.state_dir, self._worker)
            successor = connect_standby(own) if self._systemd.knows_unit else None
        self._app = SSEApp(self._settings, locked=successor is None, worker=self._worker)
        if self._parent is not None and self._parent.is_closed():
            # The next parent may have looked before this process had the lock, and its own worker waits for that now.
            raise StateError(f"the parent of worker {self._worker} has ended, or needs it no more")
        self._node = self._app.node
        self._node.metrics.dropped_log_lines = logs.dropped_lines
        application = self._app.application()
        node = self._node
        self._server = HTTPServer(
            application,
            tune=lambda sock: tune(sock, self._settings),
            limits=connection_limits(self._settings),
            counts=node.metrics.connections,
        )
        self._receiver = HandoverReceiver(
            node.hub, node.pump, node.keepalive, node.revocations, node.admission, self._server
        )
        self._sender = HandoverSender(
            node.hub, node.keepalive, node.enforcement, node.publisher, node.opening, self._server
        )
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._on_early_reload)
        loop.add_signal_handler(signal.SIGUSR2, ignore, signal.SIGUSR2, "it comes too early")
        loop.add_signal_handler(signal.SIGUSR1, ignore, signal.SIGUSR1, NO_LOG_FILE)
        reap_orphans()
        standby_socket = bind_standby_socket(self._node.state.own) if self._is_standby else None
        if self._parent is not None:
            self._watch_parent(self._parent)
        listening = await (self._start() if successor is None else self._take_over(successor))
        await node.join()
        if not (is_main or self._is_standby or self._told) and await self._systemd.has_other_main_process():
            # systemd starts another main process, which must find a standby: it could not have the lock.
            standby_socket = bind_standby_socket(self._node.state.own)
            self._is_standby = True
        if not self._is_standby:
            loop.add_signal_handler(signal.SIGHUP, lambda: self._tasks.begin(self._reload()))
            loop.add_signal_handler(signal.SIGUSR2, lambda: self._tasks.begin(self._hand_to_successor()))
        # Listening comes last: a client that connects is served.
        self._server.add_sockets(listening)
        # The first WATCHDOG=1 comes with READY: else systemd could take quick upgrades in a row for one hung process.
        self._systemd.notify("READY=1", "WATCHDOG=1", self._status())
        serving = "standing_in" if self._is_standby else "serving" if self._parent else "listening"
        log.info(
            serving,
            extra={"address": addresses(listening), "pid": os.getpid(), "version": VERSION},
        )
        with garbage_collection(True):
            self._started.set()
            self._tasks.begin(self._after_start())
            if self._reload_due and not self._is_standby:
                self._tasks.begin(self._reload())
            if standby_socket is not None:
                self._tasks.begin(self._run_as_standby(standby_socket))
            timers = self._systemd.notify_periodically(self._status)
            await self._ended.wait()
            for timer in timers:
                timer.stop()

    # -- starting -------------------------------------------------------------------------------------------

    async def _start(self) -> list[socket.socket]:
        """Start, adopt what the process before has put into the store, and return the listening sockets."""
        stored = StoredHandover(self._store) if self._store else None
        await self._node.start(stored.position if stored else None)
        if stored:
            self._adopted = stored.adopt(self._receiver)
        listening = inherited_sockets(self._inherited)
        if self._worker and not listening:
            raise StateError(
                f"worker {self._worker} was given no listening socket: it cannot share a port without"
            )
        return listening or bind(self._settings)

    async def _take_over(self, successor: Successor) -> list[socket.socket]:
        """Take over from a process that serves, and return the listening sockets."""
        for module in (_SLOW_MODULE, _METRICS_MODULE):  # there is time for it
            import_module(module)
        await self._node.prepare()
        state, descriptors = await successor.streams()
        built = self._receiver.build(state, descriptors)
        state, descriptors = await successor.everything()
        attached = attached_to(state, descriptors)
        await self._node.start(state.position)
        try:
            if not self._node.hub.continues(state.position):
                raise UpgradeFailed("the event log is not where the process before said it was")
            self._adopted = self._receiver.adopt(state, descriptors, built)
            self._parent = ParentLink.among(attached)
            # Until now a signal ended only this process, and the one before kept serving.
            if self._store is None:
                self._handle_end_signals()
                self._store = FdStore.of(attached, self._systemd) if self._parent is None else None
            self._told = successor.serve()
        except BaseException as error:
            # The process before serves the streams again, and a turn of the event loop would write to them here too.
            _exit_for(error)
        if self._parent is not None:
            self._watch_parent(self._parent)
        if not self._is_standby:  # the one before may be slow to end, and must not remove the next one's
            remove_standby_socket(self._node.state.own)
        self._node.state.take_locks([descriptor for kind, descriptor in attached if kind == LOCK])
        log.info("succeeded", extra={"streams": len(self._node.hub.streams)})
        theirs = [socket.socket(fileno=descriptor) for kind, descriptor in attached if kind == LISTENING]
        if not (ours := inherited_sockets(self._inherited)):
            return theirs
        for sock in theirs:
            sock.close()
        return ours

    # -- running --------------------------------------------------------------------------------------------

    async def _after_start(self) -> None:
        """Do what can wait; the module for tokens is loaded first, for the next publisher needs it."""
        await asyncio.to_thread(import_module, _SLOW_MODULE)
        adopted, self._adopted = self._adopted, []
        await self._receiver.watch(adopted)
        await asyncio.to_thread(import_module, _METRICS_MODULE)
        if adopted:  # clients have waited for events meanwhile, whose fan-out the rest would slow down
            await asyncio.sleep(SETTLING_TIME)
        await asyncio.to_thread(use_huge_pages)

    def _status(self) -> str:
        return status(len(self._node.hub.streams))

    def _on_early_reload(self) -> None:
        self._reload_due = True

    async def _reload(self) -> None:
        """Read the settings again and put them in force, all or none of them."""
        if self._ending:
            return
        self._systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            unchanged = self._node.reload(self._reread())
            self._server.limit(connection_limits(self._node.settings))
            logs.set_level(self._node.settings.log.level)
            log.info("reloaded", extra={"needs_restart": ",".join(unchanged)} if unchanged else {})
        except SSEAppError as error:
            log.error("reload_refused", extra={"detail": str(error)})
        self._systemd.notify("READY=1")

    async def _hand_to_successor(self) -> None:
        """Start a successor, hand everything over to it, and exit; keep serving if it fails."""
        if self._upgrade is not None or self._ending:
            return
        forget_failure(self._node.state.own)
        if obstacle := upgrade_obstacle(os.getpid()):
            self._upgrade_failed("upgrade_refused", obstacle)
            return
        if self._parent is not None:
            self._parent.stop_watching()  # what it asks for meanwhile is the successor's to do
        attached = self._attached() + (self._store.descriptors() if self._store else [])
        self._upgraded.clear()
        try:
            self._upgrade = Upgrade(self._sender, attached)
            successor = await self._upgrade.run()
        except UpgradeFailed as error:
            self._upgrade_failed("upgrade_failed", str(error))
            if self._parent is not None:
                self._watch_parent(self._parent)
        else:
            self._systemd.notify(f"MAINPID={successor}")
            log.info("upgraded", extra={"successor": successor})
            self._upgrade.confirm()
            self._leave_to(successor, self._upgrade.handed_over)
        finally:
            self._upgrade = None
            self._upgraded.set()

    def _leave_to(self, successor: int, left: HandedOver) -> NoReturn:
        """Exit, as a successor serves, and have it do what this process was still asked to do.

        It reads the settings again in any case: a `kill -HUP` that was started with the id of this process may come
        to it too late, but after the settings were written. systemd that has begun to stop the unit takes no other main
        process any more, and waits for this one.
        """
        try:
            self._systemd.wait_until_read(MAINPID_TIMEOUT)
            os.kill(successor, signal.SIGHUP)
            if signal.SIGTERM in left.signals:
                self._systemd.notify(self._time_to_drain())
                os.kill(successor, signal.SIGTERM)
                # A connection ends when the successor ends it only if no other process has it open.
                for descriptor in left.sockets:
                    with suppress(OSError):
                        os.close(descriptor)
                wait_for_end(successor)
        except ProcessLookupError:  # it has died already
            pass
        except Exception as error:  # of any kind: the streams are the successor's
            log.error("uncaught", exc_info=error)
        _exit_now()

    def _upgrade_failed(self, event: str, detail: str) -> None:
        """Tell the log, the parent and the command that this process serves on, and why."""
        log.error(event, extra={"detail": detail})
        self._systemd.notify(UPGRADE_FAILED)
        if not self._ending:  # else nothing of it is to stay behind
            tell_failure(self._node.state.own, detail)

    def _attached(self) -> Attached:
        """Return the descriptors that a warm handover passes beside the connections."""
        attached = [(LISTENING, sock.fileno()) for sock in self._server.listening]
        attached += [(LOCK, descriptor) for descriptor in self._node.state.lock_descriptors]
        return attached + ([(PARENT_LINK, self._parent.fileno())] if self._parent is not None else [])

    async def _run_as_standby(self, listening: socket.socket) -> None:
        """Serve only until the next main process has taken over."""
        try:
            await run_standby(self._sender, self._attached(), listening, self._systemd.has_stopped)
        except UpgradeFailed as error:
            log.warning("stand_in_alone", extra={"detail": str(error)})
            remove_standby_socket(self._node.state.own)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        _exit_now()

    # -- the parent of workers ------------------------------------------------------------------------------

    def _watch_parent(self, parent: ParentLink) -> None:
        parent.watch(self._listen, self._leave, self._end_without_signal, self._on_death_of_parent)

    def _listen(self, sockets: list[socket.socket]) -> None:
        """Accept connections on sockets of other workers too, which do not serve just now."""
        for sock in sockets:
            if self._ending or any(same(sock, one) for one in self._server.listening):
                sock.close()
            else:
                self._server.add_sockets([sock])

    def _leave(self, sockets: list[socket.socket]) -> None:
        """Leave these sockets to their workers again."""
        left = [one for one in self._server.listening if any(same(sock, one) for sock in sockets)]
        self._server.stop_listening(left)

    def _end_without_signal(self) -> None:
        """End as at a signal, of which one may follow: a service manager sends it to parent and workers."""
        self._tasks.begin(self._end(signal.SIGINT))

    def _on_death_of_parent(self) -> None:
        """End: no process would restart this one, nor could another parent have the address."""
        log.warning("parent_died")
        self._systemd.leave()
        self._end_without_signal()

    # -- ending ---------------------------------------------------------------------------------------------

    def _handle_end_signals(self) -> None:
        for number in END_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._on_end_signal, number)

    def _on_end_signal(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        for handled in END_SIGNALS:
            loop.remove_signal_handler(handled)
            # A second signal ends the process at once; the kernel's default passes process 1 over (pid_namespaces(7)).
            signal.signal(handled, _exit_by_signal if os.getpid() == 1 else signal.SIG_DFL)
        self._tasks.begin(self._end(number))

    async def _end(self, number: int) -> None:
        await self._started.wait()
        if self._ending:
            return
        self._ending = True
        if self._upgrade is not None:
            self._upgrade.give_up()
        await self._upgraded.wait()
        log.info("stopping", extra={"streams": len(self._node.hub.streams)})
        self._systemd.notify("STOPPING=1")
        try:
            if number == signal.SIGTERM and self._store and not await self._systemd.stops_for_good():
                await self._hand_over(self._store)
            await self._drain()
        finally:  # a process that was asked to end ends, also if a step fails
            self._ended.set()

    async def _hand_over(self, store: FdStore) -> None:
        """Hand all connections over to the next process, and exit; return only if that is not possible."""
        directory = self._node.state.own
        with garbage_collection(False):
            if (
                await self._systemd.keeps_other_processes()
                and await hand_over_to_standby(lambda: Upgrade(self._sender, self._attached()), directory)
            ) or (await self._systemd.keeps_descriptors() and await store_handover(self._sender, store)):
                log.info("handed_over", extra={"streams": len(self._node.hub.streams)})
                _exit_now()

    async def _drain(self) -> None:
        """End the streams, spread over a while, so that their clients come back spread out."""
        self._server.close_listening()
        self._systemd.notify(self._time_to_drain())
        await self._node.drain(self._node.settings.stream.drain_time)
        await self._server.finish(REQUESTS_TIMEOUT)
        await self._app.stop()
        await self._server.close_all_connections()
        log.info("stopped")

    def _time_to_drain(self) -> str:
        """Return what systemd is told of how long it takes to end all streams."""
        return f"EXTEND_TIMEOUT_USEC={int((self._node.settings.stream.drain_time + 10) * 1e6)}"


def _exit_by_signal(number: int, frame: object) -> None:
    os._exit(128 + number)


def _exit_for(error: BaseException) -> NoReturn:
    """Exit with an error, and without another turn of the event loop."""
    if isinstance(error, SSEAppError):
        log.error("handover_failed", extra={"detail": str(error)})
    else:
        log.error("uncaught", exc_info=error)
    logging.shutdown()
    os._exit(1)


def _exit_now() -> NoReturn:
    """Exit without closing anything: another process uses the connections and files now."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)
