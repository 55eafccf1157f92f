"""Another process that appends to an event log: ``python -m tests.support.appender PLACE CHANNEL PAUSE``.

The place is a file, or the URL of a database.

It prints the id of each event once it is stored, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from sse_app.core.channels import ChannelName
from sse_app.core.errors import EventLogUnavailable
from sse_app.core.events import NewEvent
from sse_app.eventlog.sqlite.lock import LogLock
from tests.support.log_processes import log_at
from tests.support.preloaded import module, start
from tests.support.waiting import until


async def append(place: Path | str, channel: ChannelName, pause: float) -> None:
    """Append one event after another until standard input ends."""
    log = log_at(place)
    await log.open()
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    number = 0
    try:
        while not ended.done():
            number += 1
            with suppress(EventLogUnavailable):  # it was stopped for too long; then it is not stored
                (id,) = await log.append([NewEvent(channel, "e", b'{"appended": %d}' % number)])
                print(id, flush=True)
            await asyncio.sleep(pause)
    finally:
        await log.close()


class Appender:
    """Runs the process, and collects the ids of what it appends.

    Args:
        path: the event log's database file, or the URL of its database.
        channel: where the events go.
        pause: seconds between two.
    """

    def __init__(self, path: Path | str, channel: str, pause: float) -> None:
        self.ids: list[str] = []
        self._path = path
        self.process = start(
            [str(path), channel, str(pause)],
            environment=os.environ,
            program=module("tests.support.appender"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._thread = threading.Thread(target=self._read, name="appender", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.ids.extend(line.strip() for line in iter(self.process.stdout.readline, ""))

    def stop(self) -> list[str]:
        """Have the process end, and return the ids of all that it has appended, in their order."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        self._end()
        return self.ids

    def stop_with_the_lock(self) -> None:
        """Stop the process (SIGSTOP) at a moment when it has the log's lock."""
        lock = LogLock(Path(self._path))
        lock.open()
        try:

            def has_it() -> bool:
                os.kill(self.process.pid, signal.SIGSTOP)
                os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
                if not lock.try_acquire():
                    return True
                lock.release()
                os.kill(self.process.pid, signal.SIGCONT)
                return False

            until(has_it, "the process is stopped while it has the lock")
        finally:
            lock.close()

    def resume(self) -> None:
        """Let a process that was stopped run again."""
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the process as a power cut would, where it still runs; `ids` are those that it acknowledged."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._end()

    def _end(self) -> None:
        self._thread.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def main() -> None:
    """Append as the arguments say."""
    asyncio.run(append(sys.argv[1], ChannelName(sys.argv[2]), float(sys.argv[3])))


if __name__ == "__main__":
    main()
