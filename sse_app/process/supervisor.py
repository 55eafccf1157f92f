"""The parent of several workers: it binds, starts them, watches them, restarts what dies, and passes signals on.

The workers do all the work, and each is as a server alone is; nothing that a client sends comes by here. The
parent is their service manager: it opens their listening sockets and keeps them (sd_listen_fds(3)), and they report
to it (sd_notify(3)). It has no event loop, and holds no connection and no database.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from sse_app.core.errors import SSEAppError
from sse_app.process import logs, parent_link
from sse_app.process.children import become_subreaper, cause_of, ended_children, is_child
from sse_app.process.garbage_collection import garbage_collection
from sse_app.process.listeners import Listeners
from sse_app.process.notifications import UPGRADE_FAILED, Notifications, streams_in
from sse_app.process.parent_start import bound_listeners, end_standby, wait_for_workers, without_stored
from sse_app.process.replacement import put_variable, replace_program, taken_over
from sse_app.process.rolling_upgrade import RollingUpgrade
from sse_app.process.signals import END_SIGNALS, NO_LOG_FILE, ignore
from sse_app.process.sockets import addresses
from sse_app.process.systemd import STATUS_INTERVAL, Systemd, inherited_descriptors
from sse_app.process.worker_process import ENDING_GRACE, HANG_TIMEOUT, WorkerProcess
from sse_app.settings.model import Settings
from sse_app.settings.workers import require_shareable, worker_count
from sse_app.storage.state_dir import StateDirectory
from sse_app.version import VERSION

LENT_AFTER = 2.0
"""For how many seconds a worker may be away before the others accept the connections that wait on its socket."""

LOOKING_INTERVAL = 5.0
"""After how many seconds at most the parent looks after everything."""

_FIXED = ("state_dir", "event_log")
"""The settings that stay as they are until a restart, with whichever settings file a worker starts."""

log = logging.getLogger(__name__)


def run(settings: Settings, reread: Callable[[], Settings]) -> int:
    """Run workers until a signal asks to stop, and return the exit status.

    Args:
        settings: in force at first.
        reread: returns the settings as they are now, when SIGHUP asks for it.

    Raises:
        StateError: the state directory, the event log or the address cannot be used by several workers.
    """
    return Supervisor(settings, reread, taken_over()).run()


class Supervisor:
    """The parent.

    Args:
        settings: in force at first.
        reread: returns the settings as they are now.
        kept: what the program that this process ran before has left, after an upgrade.
    """

    def __init__(
        self, settings: Settings, reread: Callable[[], Settings], kept: dict[str, Any] | None
    ) -> None:
        self._reread = reread
        self._systemd = Systemd()
        self._signals: deque[int] = deque()
        self._ending = False
        self._exit_status = 0
        self._retired: set[int] = set()
        """Processes that have handed over, and are about to end."""
        self._announced = False
        """Whether the service manager and the log have been told that the workers serve."""
        self._told_status = ""
        self._next_status = self._next_watchdog = 0.0
        self._replace_program = False
        """Whether all workers have been upgraded, and only this process is yet to be."""
        if kept is not None:
            settings = msgspec.structs.replace(
                settings, state_dir=Path(kept["state_dir"]), event_log=kept["event_log"]
            )
            for name, value in kept.get("environment", {}).items():  # the version before leaves none
                put_variable(name, value)
        self._settings = settings
        self._state = StateDirectory(settings.state_dir)
        self._upgrade = RollingUpgrade(self._state.workers)
        self._workers: dict[int, WorkerProcess] = {}
        if kept is None:
            require_shareable(settings)
            patience = settings.stream.drain_time + ENDING_GRACE
            if self._systemd.knows_unit:
                end_standby(self._state, patience)
            self._state.lock_for_parent()
            wait_for_workers(self._state, patience)
            passed = without_stored(inherited_descriptors(), self._systemd)
            count = worker_count(settings)
            self._listeners = (
                Listeners.inherited(passed) if passed else bound_listeners(settings, self._state, count)
            )
            self._notifications = Notifications.bound(self._state.workers)
            self._wanted = 0
        else:
            self._take(kept)

    # -- the loop -------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until the last worker has ended, and return the exit status."""
        become_subreaper()
        ours, wakeup = socket.socketpair()
        for end in (ours, wakeup):
            end.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        for number in (*END_SIGNALS, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
            signal.signal(number, lambda number, frame: self._signals.append(number))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # they were blocked when the program was replaced
        poll = select.poll()
        poll.register(ours, select.POLLIN)
        poll.register(self._notifications.socket, select.POLLIN)
        with garbage_collection(True):
            self._resize(worker_count(self._settings), first=not self._workers)
            while not (self._ending and not any(worker.pid for worker in self._workers.values())):
                begun = time.monotonic()
                wait = max(0.0, self._next_due(begun) - begun)
                poll.poll(wait * 1000 + 1)
                with suppress(BlockingIOError):
                    ours.recv(4096)
                if time.monotonic() - begun > wait + HANG_TIMEOUT / 3:  # this process was stopped for a while
                    for worker in self._workers.values():
                        worker.seen_at = time.monotonic()
                self._turn()
        self._notifications.close()
        if self._announced:
            log.info("stopped")
        return self._exit_status

    def _turn(self) -> None:
        """Look after everything once."""
        # What a process has reported before its end is read after that was noticed.
        ended = ended_children()
        for pid, message in self._notifications.read():
            self._on_report(pid, message, ended)
        for pid, status in ended.items():
            self._on_child_end(pid, status)
        while self._signals:
            self._on_signal(self._signals.popleft())
        self._look_after_workers(time.monotonic())
        self._lend_sockets()
        self._report(time.monotonic())
        if self._replace_program and not self._ending:
            self._become_new_program()

    def _next_due(self, now: float) -> float:
        """Return the time at which there is something to do, if no signal and no report comes before."""
        due = [now + LOOKING_INTERVAL]
        for worker in self._workers.values():
            due += [at for at in (worker.start_at, worker.kill_at, worker.hangs_at) if at is not None]
            if worker.down_since is not None and now < worker.down_since + LENT_AFTER:
                due.append(worker.down_since + LENT_AFTER)
        if self._upgrade.due_at is not None:
            due.append(self._upgrade.due_at)
        if self._systemd.watchdog and not self._ending:
            due.append(self._next_watchdog)
        return min(due)

    def _look_after_workers(self, now: float) -> None:
        for worker in list(self._workers.values()):
            if worker.start_at is not None and now >= worker.start_at:
                self._start(worker, now)
            if worker.pid is None:
                continue
            if worker.kill_at is not None:
                if now >= worker.kill_at:
                    log.error("worker_killed", extra=_of(worker) | {"detail": "it did not end in time"})
                    self._exit_status = 1
                    worker.kill_at = now + LOOKING_INTERVAL
                    worker.kill("it did not end in time")
            elif (hangs_at := worker.hangs_at) is not None and now >= hangs_at:
                log.error("worker_hung", extra=_of(worker) | {"silent_for": round(now - worker.seen_at, 1)})
                worker.kill("it hung")
        if self._upgrade.due_at is not None and now >= self._upgrade.due_at:
            self._upgrade.fail("it has taken too long")
        for worker in self._workers.values():
            if worker.reload_due and worker.ready and not worker.stopping and not self._upgrade.is_at(worker):
                worker.reload_due = False
                worker.signal(signal.SIGHUP)

    # -- workers --------------------------------------------------------------------------------------------

    def _resize(self, count: int, *, first: bool = False) -> None:
        """Have so many workers from now on.

        Args:
            count: how many.
            first: whether the others wait for the first one, which makes the state and finds out whether it can be
                used.
        """
        self._listeners.grow(count)
        self._wanted = count
        now = time.monotonic()
        for number in range(1, count + 1):
            worker = self._workers.setdefault(number, WorkerProcess(number))
            if worker.pid is None and worker.start_at is None and (number == 1 or not first):
                worker.start_at = now
        surplus = [worker for number, worker in self._workers.items() if number > count]
        self._lend_sockets()  # so that what waits on theirs is accepted
        for worker in surplus:
            self._ask_to_end(worker)
            if worker.pid is None:
                del self._workers[worker.number]

    def _start(self, worker: WorkerProcess, now: float) -> None:
        try:
            worker.start(self._environment(), self._listeners.of(worker.number), now, HANG_TIMEOUT)
        except OSError as error:
            detail = f"it cannot be started: {error.strerror}"
            self._restart_later(worker, detail, now)

    def _environment(self) -> dict[str, str]:
        """Return the variables that each worker gets.

        The settings file may name another state directory or event log by now; all workers have the same.
        """
        hidden = ("WATCHDOG_PID", "SYSTEMD_UNIT")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment["NOTIFY_SOCKET"] = self._notifications.address
        return environment | self._fixed_variables()

    def _fixed_variables(self) -> dict[str, str]:
        """Return the variables that fix the state directory and the event log; the settings file may name others."""
        return {
            "SSE_APP_STATE_DIR": str(self._settings.state_dir),
            "SSE_APP_EVENT_LOG": str(self._settings.event_log),
        }

    def _ask_to_end(self, worker: WorkerProcess) -> None:
        worker.start_at = None
        if worker.pid is not None and worker.link is not None:
            worker.ask_to_end()
            if worker.ready_at is None:  # no streams, and it reads what it is asked only once it has loaded
                worker.signal(signal.SIGTERM)
            worker.kill_at = time.monotonic() + self._settings.stream.drain_time + ENDING_GRACE

    def _restart_later(self, worker: WorkerProcess, cause: str, now: float) -> None:
        fields = _of(worker) | {"cause": cause}
        delay = worker.has_died(now)
        worker.start_at = now + delay
        log.error("worker_died", extra=fields | {"restart_in": round(delay, 1)})

    def _on_child_end(self, pid: int, status: int) -> None:
        """Do what is due when a child has ended."""
        self._retired.discard(pid)
        worker = next((one for one in self._workers.values() if one.pid == pid), None)
        if worker is None:
            return
        now = time.monotonic()
        if self._upgrade.is_at(worker):
            self._upgrade.fail("it has died")
        cause = worker.killed_for or cause_of(status)
        if not self._ending and self._is_first_start(worker) and os.WIFEXITED(status):
            self._exit_status = os.WEXITSTATUS(status) or 1  # it has said why
            self._ending = True
            worker.has_died(now)
            return
        if worker.stopping or self._ending:
            log.info("worker_ended", extra=_of(worker) | {"cause": cause})
            worker.has_died(now)
            worker.failures = 0
            if worker.number > self._wanted:
                del self._workers[worker.number]
            elif not self._ending:  # it is wanted again
                worker.start_at = now
            return
        self._restart_later(worker, cause, now)

    def _is_first_start(self, worker: WorkerProcess) -> bool:
        """Return whether no worker has ever served, and the others wait for this one."""
        others = (one for one in self._workers.values() if one is not worker)
        return (
            not self._announced
            and worker.ready_at is None
            and all(one.pid is None and one.start_at is None for one in others)
        )

    def _on_report(self, pid: int, message: str, ended: dict[int, int]) -> None:
        """Act on what a worker has reported."""
        worker = next((one for one in self._workers.values() if one.pid == pid), None)
        if worker is None:
            return
        now = time.monotonic()
        worker.seen_at = now
        for line in message.split("\n"):
            name, _, value = line.partition("=")
            if name in ("READY", "WATCHDOG"):
                self._serves(worker, now)
            elif (streams := streams_in(line)) is not None:
                worker.streams = streams
            elif name == "MAINPID" and value.isdigit() and (int(value) in ended or is_child(int(value))):
                self._retired.add(pid)
                worker.succeeded_by(int(value), now)
                log.info("worker_succeeded", extra=_of(worker))
            elif line == UPGRADE_FAILED and self._upgrade.is_at(worker):
                self._upgrade.fail("its log lines say why")

    def _serves(self, worker: WorkerProcess, now: float) -> None:
        if worker.ready:
            worker.serves(now)
            return
        is_new = worker.ready_at is None
        worker.serves(now)
        if is_new:
            log.info("worker_started", extra=_of(worker))
        if self._ending or worker.stopping:
            return
        for other in self._workers.values():  # those that waited for the first one
            if other.pid is None and other.start_at is None and other.number <= self._wanted:
                other.start_at = now
        if self._upgrade.is_at(worker):
            self._replace_program = self._upgrade.succeeded()

    def _lend_sockets(self) -> None:
        """Have the workers that serve accept also what waits on the sockets of those that do not."""
        now = time.monotonic()
        accepted: set[socket.socket] = set()
        for worker in self._workers.values():
            away = worker.down_since is None or now >= worker.down_since + LENT_AFTER
            if worker.number <= self._wanted and not worker.stopping and (worker.ready or not away):
                accepted.update(self._listeners.of(worker.number))
        unattended = set(self._listeners.all()) - accepted
        for worker in self._workers.values():
            if not worker.ready or worker.link is None:
                continue
            due = unattended | set(self._listeners.of(worker.number))
            for word, sockets in (
                (parent_link.LISTEN, due - worker.listens),
                (parent_link.LEAVE, worker.listens - due),
            ):
                if sockets and parent_link.send(worker.link, word, list(sockets)):
                    worker.listens ^= sockets

    # -- signals --------------------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        if number in END_SIGNALS:
            if self._ending:
                self._end_at_once(number)
            log.info("stopping", extra={"streams": sum(one.streams for one in self._workers.values())})
            self._end_all()
        elif number == signal.SIGHUP:
            self._reload()
        elif number == signal.SIGUSR2:
            self._begin_upgrade()
        elif number == signal.SIGUSR1:
            ignore(number, NO_LOG_FILE)

    def _end_all(self) -> None:
        """Have all workers end, as each does alone."""
        self._ending = True
        self._upgrade.cancel()
        seconds = self._settings.stream.drain_time + ENDING_GRACE + LOOKING_INTERVAL
        self._systemd.notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")
        self._listeners.close()
        for worker in self._workers.values():
            self._ask_to_end(worker)

    def _end_at_once(self, number: int) -> None:
        """End all workers and this process, as a second signal asks for."""
        for worker in self._workers.values():
            worker.kill("a second signal has come")
        for pid in self._retired:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._notifications.close()
        logging.shutdown()
        if os.getpid() == 1:  # the kernel's default passes process 1 over (pid_namespaces(7))
            os._exit(128 + number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _reload(self) -> None:
        """Read the settings again, and have all workers do so, if they are good."""
        if self._ending:
            return
        self._systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            settings = self._reread()
            count = worker_count(settings)
            self._listeners.grow(count)
        except (SSEAppError, OSError) as error:
            log.error("reload_refused", extra={"detail": str(error)})
        else:
            fixed = {name: getattr(self._settings, name) for name in _FIXED}
            kept = [name for name, value in fixed.items() if getattr(settings, name) != value]
            self._settings = msgspec.structs.replace(settings, **fixed)
            logs.set_level(settings.log.level)
            log.info(
                "reloaded",
                extra={"workers": count} | ({"needs_restart": ",".join(kept)} if kept else {}),
            )
            self._resize(count)
            for worker in self._workers.values():
                worker.reload_due = worker.pid is not None
        self._systemd.notify("READY=1")

    # -- upgrades -------------------------------------------------------------------------------------------

    def _begin_upgrade(self) -> None:
        """Have each worker hand over to a successor, one after the other; this process becomes the new program last."""
        if not self._ending and self._upgrade.due_at is None:
            workers = (worker for _, worker in sorted(self._workers.items()))
            self._replace_program = self._upgrade.begin(
                worker for worker in workers if worker.ready and not worker.stopping
            )

    def _become_new_program(self) -> None:
        """Run the program anew in this very process: it keeps its children, sockets and locks.

        Signals are blocked meanwhile, until the new program unblocks them. Those that have come before would be lost
        with this one: they are seen to first.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            if not self._signals:
                self._replace_program = False
                self._run_program_anew()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _run_program_anew(self) -> None:
        variables = self._fixed_variables()
        kept = {
            "state_dir": str(self._settings.state_dir),
            "event_log": str(self._settings.event_log),
            "environment": {name: os.environ.get(name) for name in variables},
            "locks": self._state.lock_descriptors,
            "listeners": self._listeners.kept(),
            "notifications": self._notifications.kept(),
            "wanted": self._wanted,
            "announced": self._announced,
            "workers": [worker.kept() for worker in self._workers.values()],
        }
        descriptors = [
            *self._state.lock_descriptors,
            *(sock.fileno() for sock in self._listeners.all()),
            *self._notifications.descriptors(),
            *(worker.link.fileno() for worker in self._workers.values() if worker.link is not None),
        ]
        log.info("upgraded", extra={"workers": len(self._workers)})
        try:
            replace_program(kept, variables, descriptors)
        except OSError as error:
            log.error("upgrade_failed", extra={"detail": f"the parent keeps its program: {error}"})

    def _take(self, kept: dict[str, Any]) -> None:
        """Take what the program before has left in this process."""
        self._state.take_locks(kept["locks"])
        self._listeners = Listeners.of_kept(kept["listeners"])
        self._notifications = Notifications.of_kept(kept["notifications"])
        self._wanted, self._announced = kept["wanted"], kept["announced"]
        by_descriptor = {sock.fileno(): sock for sock in self._listeners.all()}
        now = time.monotonic()
        for one in kept["workers"]:
            worker = self._workers[one["number"]] = WorkerProcess.of_kept(one, by_descriptor, now)
            if worker.stopping:
                worker.kill_at = now + self._settings.stream.drain_time + ENDING_GRACE
            elif worker.pid is None and worker.number <= self._wanted:
                worker.start_at = now
        log.info("parent_replaced", extra={"pid": os.getpid(), "version": VERSION})

    # -- reports --------------------------------------------------------------------------------------------

    def _report(self, now: float) -> None:
        """Tell the service manager and the log how it goes."""
        if self._ending:
            return
        workers = [worker for worker in self._workers.values() if worker.number <= self._wanted]
        ready = sum(worker.ready for worker in workers)
        settled = all(worker.ready or worker.failures for worker in workers)
        streams = sum(worker.streams for worker in self._workers.values())
        status = f"STATUS={ready} of {self._wanted} workers, {streams} streams"
        if not self._announced and ready and settled:
            self._announced = True
            self._systemd.notify("READY=1", "WATCHDOG=1", status)
            log.info(
                "listening",
                extra={
                    "address": addresses([sockets[0] for sockets in self._listeners.addresses]),
                    "pid": os.getpid(),
                    "version": VERSION,
                    "workers": self._wanted,
                },
            )
        elif status != self._told_status and now >= self._next_status:
            self._systemd.notify(status)
            self._told_status, self._next_status = status, now + STATUS_INTERVAL
        if self._systemd.watchdog and now >= self._next_watchdog:
            self._systemd.notify("WATCHDOG=1")
            self._next_watchdog = now + self._systemd.watchdog / 3


def _of(worker: WorkerProcess) -> dict[str, Any]:
    """Return the fields of a log line that name a worker."""
    return {"worker": worker.number, "pid": worker.pid}
