"""Something that is done again and again beside a test, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Repeated(threading.Thread):
    """Does something again and again until it is stopped; what fails is raised then.

    Args:
        act: does it once.
        pause: seconds between two times.
    """

    def __init__(self, act: Callable[[], object], pause: float = 0.0) -> None:
        super().__init__(daemon=True)
        self._act = act
        self._pause = pause
        self._stopping = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Do it until it is to stop."""
        try:
            while not self._stopping.wait(self._pause):
                self._act()
        except BaseException as error:
            self._failure = error

    def end(self) -> None:
        """Have it end soon."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop, and raise what has failed."""
        self.end()
        self.join()
        if self._failure is not None:
            raise self._failure


@contextmanager
def repeating(*threads: Repeated) -> Iterator[None]:
    """Have these do it meanwhile, and raise then what has failed in one of them."""
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.end()
        for thread in threads:
            thread.join()
    for thread in threads:
        thread.stop()
