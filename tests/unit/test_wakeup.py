"""What one thread is woken by from another."""

from __future__ import annotations

import os
import threading
import time

from sse_app.core.wakeup import Wakeup


def test_to_set_it_ends_the_wait_of_another_thread() -> None:
    wakeup = Wakeup()
    waits = threading.Event()

    def wait() -> None:
        waits.set()
        wakeup.wait(60)

    thread = threading.Thread(target=wait)
    thread.start()
    waits.wait(60)
    wakeup.set()
    thread.join(30)
    assert not thread.is_alive()
    wakeup.close()


def test_it_is_set_once_however_often_and_a_wait_clears_it() -> None:
    wakeup = Wakeup()
    for _ in range(3):
        wakeup.set()
    began = time.monotonic()
    wakeup.wait(60)
    assert time.monotonic() - began < 30
    wakeup.wait(0.05)
    assert time.monotonic() - began >= 0.05
    wakeup.set()
    wakeup.clear()
    wakeup.clear()
    wakeup.wait(0.05)
    assert time.monotonic() - began >= 0.1
    wakeup.close()


def test_to_set_it_after_it_is_closed_reaches_no_other_file() -> None:
    wakeup = Wakeup()
    descriptor = wakeup.fileno()
    wakeup.close()
    wakeup.close()
    other = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        assert other == descriptor
        wakeup.set()
        try:
            found = os.eventfd_read(other)
        except BlockingIOError:
            found = 0
        assert found == 0
    finally:
        os.close(other)
