"""What one thread is woken by from another."""

from __future__ import annotations

import os
import threading
import time

from sse_app.core.wakeup import Wakeup


def test_a_call_ends_the_wait_of_another_thread() -> None:
    wakeup = Wakeup()
    waits = threading.Event()

    def wait() -> None:
        waits.set()
        wakeup.wait(60)

    thread = threading.Thread(target=wait)
    thread.start()
    waits.wait(60)
    wakeup.call()
    thread.join(30)
    assert not thread.is_alive()
    wakeup.close()


def test_calls_of_before_are_one_and_then_it_is_waited_again() -> None:
    wakeup = Wakeup()
    for _ in range(3):
        wakeup.call()
    began = time.monotonic()
    wakeup.wait(60)
    assert time.monotonic() - began < 30
    wakeup.wait(0.05)
    assert time.monotonic() - began >= 0.05
    wakeup.call()
    wakeup.take()
    wakeup.take()
    wakeup.wait(0.05)
    assert time.monotonic() - began >= 0.1
    wakeup.close()


def test_a_call_after_the_end_reaches_no_other_file() -> None:
    wakeup = Wakeup()
    descriptor = wakeup.fileno()
    wakeup.close()
    wakeup.close()
    other = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        assert other == descriptor
        wakeup.call()
        try:
            found = os.eventfd_read(other)
        except BlockingIOError:
            found = 0
        assert found == 0
    finally:
        os.close(other)
