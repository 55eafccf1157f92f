"""The thread that writes the log: what waits is bounded, what is missing is told, and lines stay whole."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import select
import signal
import socket
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sse_app.process import log_limits
from sse_app.process.log_format import JSONFormatter
from sse_app.process.log_limits import LEFT_OUT
from sse_app.process.log_writer import DROPPED, FLUSH_TIMEOUT, LogWriter
from tests.support.waiting import DEADLINE, until


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that nothing reads unless the test does."""
    reading, writing = os.pipe()
    yield reading, writing
    # The number stays taken: a thread that still has lines to write must not write them into another test's pipe.
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), writing)
    while os.read(reading, 65_536):  # a thread that waits to write ends
        pass
    os.close(reading)


def writer(descriptor: int, limit: int = 100_000) -> tuple[LogWriter, logging.Logger]:
    """Return a writer, and a logger of its own that logs through it."""
    handler = LogWriter(descriptor, limit)
    handler.setFormatter(JSONFormatter())
    logger = logging.Logger("sse_app.test")
    logger.addHandler(handler)
    return handler, logger


def test_its_thread_takes_no_signals(pipe: tuple[int, int]) -> None:
    """One that the main thread blocks, to see to it in time, must not be taken there."""
    reading, writing = pipe
    _, logger = writer(writing)
    before = {thread.native_id for thread in threading.enumerate()}
    logger.warning("begin")
    lines_of(reading, lambda lines: len(lines) == 1)
    (thread,) = {thread.native_id for thread in threading.enumerate()} - before
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    found = re.search(r"^SigBlk:\s*([0-9a-f]+)$", status, re.MULTILINE)
    assert found is not None
    blocked = int(found[1], 16)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        assert blocked >> (number - 1) & 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def lines_of(reading: int, enough: Callable[[list[dict[str, object]]], bool]) -> list[dict[str, object]]:
    """Read lines until there are enough."""
    text = b""
    found: list[dict[str, object]] = []
    while not enough(found):
        assert select.select([reading], [], [], DEADLINE)[0], found
        text += os.read(reading, 65_536)
        *whole, text = text.split(b"\n")
        found += [json.loads(line) for line in whole if line]
    return found


def fill(writing: int) -> None:
    """Write empty lines to a pipe until it takes no more."""
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"\n" * 1024)
    os.set_blocking(writing, True)


def test_what_waits_is_bounded_and_what_was_dropped_is_counted_and_told_at_its_place(
    pipe: tuple[int, int],
) -> None:
    reading, writing = pipe
    handler, logger = writer(writing)
    fill(writing)
    for number in range(3000):  # far more than 100 kB
        logger.debug("one", extra={"number": number})
    assert handler.dropped > 1000
    dropped = handler.dropped
    found = lines_of(reading, lambda found: bool(found) and found[-1]["event"] == DROPPED)
    numbers = [line["number"] for line in found[:-1]]
    assert numbers == list(range(3000 - dropped))
    assert found[-1]["lines"] == dropped
    assert found[-1]["level"] == "warning"
    until(lambda: not handler._overflowing, "lines are taken again")
    logger.debug("after")
    assert [line["event"] for line in lines_of(reading, bool)] == ["after"]
    assert handler.dropped == dropped


def test_to_log_takes_no_longer_where_nothing_is_read(pipe: tuple[int, int]) -> None:
    _, logger = writer(pipe[1])
    begun = time.monotonic()
    for number in range(3000):
        logger.debug("one", extra={"number": number, "text": "x" * 300})
    assert time.monotonic() - begun < 20


def test_a_flush_waits_for_what_is_queued_but_not_for_ever(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    handler, logger = writer(writing)
    handler.flush()  # nothing has been logged
    logger.debug("one")
    handler.flush()
    assert json.loads(os.read(reading, 4096))["event"] == "one"
    for _ in range(1000):
        logger.debug("x" * 300)
    begun = time.monotonic()
    handler.flush()
    assert FLUSH_TIMEOUT * 0.9 < time.monotonic() - begun < FLUSH_TIMEOUT + 10


def missing(found: list[dict[str, object]]) -> int:
    """Return how many lines are missing, as the lines at the gaps say."""
    return sum(int(str(line["lines"])) for line in found if line["event"] == DROPPED)


def test_a_flush_amid_dropped_lines_does_not_end_the_taking_of_lines(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    handler, logger = writer(writing, 5000)
    fill(writing)
    for number in range(2000):
        logger.debug("one", extra={"number": number})
    assert handler.dropped
    thread = threading.Thread(target=handler.flush)
    thread.start()
    lines_of(reading, lambda found: missing(found) == handler.dropped)
    thread.join()
    until(lambda: not handler._overflowing, "lines are taken again")
    logger.debug("after")
    assert lines_of(reading, bool)[-1]["event"] == "after"


def test_lines_of_two_writers_do_not_mix_in_one_pipe(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    count = 500
    writers = [writer(writing, 10_000_000) for _ in range(2)]  # two threads write as two processes would

    def log(logger: logging.Logger, name: str) -> None:
        for number in range(count):
            logger.debug(name, extra={"number": number, "text": name * (number % 400)})

    threads = [
        threading.Thread(target=log, args=(logger, name))
        for (_, logger), name in zip(writers, "ab", strict=True)
    ]
    for thread in threads:
        thread.start()
    found = lines_of(reading, lambda found: len(found) == 2 * count)
    for thread in threads:
        thread.join()
    for name in "ab":
        assert [line["number"] for line in found if line["event"] == name] == list(range(count))


def test_a_pipe_that_another_program_has_made_non_blocking_loses_no_line(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    handler, logger = writer(writing, 10_000_000)
    for number in range(2000):
        logger.debug("one", extra={"number": number})
    found = lines_of(reading, lambda found: len(found) == 2000)
    assert [line["number"] for line in found] == list(range(2000))
    assert handler.dropped == 0
    assert not os.get_blocking(writing), "how the descriptor blocks is not ours to change"


def test_a_line_that_a_full_disk_has_torn_is_not_continued_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("ab") as file:
        handler, logger = writer(file.fileno())
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))  # as if 20 bytes were free
            logger.debug("torn")
            handler.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert handler.dropped == 1
        logger.debug("whole")
        handler.flush()
        handler.flush()
    torn, *rest = path.read_text().splitlines()
    assert len(torn) == 20
    assert sorted(json.loads(line)["event"] for line in rest) == [DROPPED, "whole"]


def test_a_record_that_cannot_be_formatted_is_told_and_raises_nothing(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    _, logger = writer(writing)
    logger.debug("%d", "no number")
    (line,) = lines_of(reading, bool)
    assert line["event"] == "log_line_failed"
    assert line["logger"] == "sse_app.test"


def test_a_terminal_that_is_stopped_with_ctrl_s_holds_up_only_the_thread() -> None:
    ours, theirs = os.openpty()
    try:
        handler, logger = writer(theirs)
        termios.tcflow(theirs, termios.TCOOFF)
        for number in range(200):
            logger.debug("one", extra={"number": number, "text": "x" * 300})
        termios.tcflow(theirs, termios.TCOON)
        found = lines_of(ours, lambda found: len(found) == 200)
        assert [line["number"] for line in found] == list(range(200))
        assert handler.dropped == 0
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_socket_such_as_the_journal_s_gets_every_line_whole() -> None:
    ours, theirs = socket.socketpair()  # a stream, as systemd gives (systemd.exec(5), StandardError=journal)
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        _, logger = writer(theirs.fileno(), 10_000_000)
        for number in range(1000):
            logger.debug("one", extra={"number": number, "text": "x" * (number % 700)})
        found = lines_of(ours.fileno(), lambda found: len(found) == 1000)
        assert [line["number"] for line in found] == list(range(1000))


def test_a_thread_that_waits_for_lines_does_not_run(pipe: tuple[int, int]) -> None:
    handler, logger = writer(pipe[1])
    logger.debug("one")
    handler.flush()
    assert handler._thread is not None
    status = Path(f"/proc/self/task/{handler._thread.native_id}/status")

    def runs() -> list[str]:
        return [line for line in status.read_text().splitlines() if "ctxt_switches" in line]

    def rests() -> bool:
        before = runs()
        time.sleep(0.5)
        return runs() == before

    until(rests, "it has come to wait, and does not run")


def test_what_is_left_out_is_told_also_when_nothing_more_is_logged(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_limits, "REPORT_INTERVAL", 0.5)
    reading, writing = pipe
    _, logger = writer(writing, 10_000_000)
    for _ in range(300):
        logger.info("one")
    found = lines_of(reading, lambda found: bool(found) and found[-1]["event"] == LEFT_OUT)
    shown = [line["event"] for line in found].count("one")
    assert shown < 300
    assert sum(int(str(line["lines"])) for line in found if line["event"] == LEFT_OUT) == 300 - shown


def test_nothing_runs_until_the_first_line(pipe: tuple[int, int]) -> None:
    before = threading.active_count()
    _, logger = writer(pipe[1])
    assert threading.active_count() == before
    logger.debug("one")
    assert threading.active_count() == before + 1
