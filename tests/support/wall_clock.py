"""The wall clock of a server process, which a test sets while the server runs, as an operator or NTP would."""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sse_app.auth.tokens.claims import new_id
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind, Tokens
from sse_app.auth.tokens.keyring import KeyRing
from sse_app.settings.model import Settings
from tests.support.people import Ear
from tests.support.preloaded import CLOCK
from tests.support.programs import compiled
from tests.support.server_process import ServerProcess, starting

SOURCE = Path(__file__).with_suffix(".c")
MINUTE, HOUR, YEAR = 60.0, 3600.0, 365 * 86_400.0

Hear = Callable[..., Ear]


class WallClock:
    """A wall clock that differs from the machine's by an offset; the monotonic clock stays as it is.

    Args:
        library: `SOURCE`, compiled.
        file: is made, and holds the offset.
    """

    def __init__(self, library: Path, file: Path) -> None:
        file.write_bytes(bytes(8))
        with file.open("r+b") as opened:
            self._page = mmap.mmap(opened.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(library), CLOCK: str(file)}
        self.offset = 0.0

    def set(self, offset: float) -> None:
        """Let it differ from the machine's clock by so many seconds from now on."""
        self.offset = offset
        self._page[:] = struct.pack("q", round(offset * 1e9))

    def set_to(self, moment: float) -> None:
        """Let it show a time, in seconds since the epoch."""
        self.set(moment - time.time())

    def now(self) -> float:
        """Return what it shows, in seconds since the epoch."""
        return time.time() + self.offset

    def close(self) -> None:
        """Release the file."""
        self._page.close()


class ClockedServer(ServerProcess):
    """A server that has such a clock, as have the commands that are run on its state.

    Args:
        clock: the clock.
    """

    def __init__(self, clock: WallClock, **settings: Any) -> None:
        super().__init__(**settings)
        self.clock = clock
        self.environment |= clock.environment

    def minted(self, kind: TokenKind, *, subject: str = "tester", ttl: float = 600) -> str:
        """Return a token for everything that was issued by this clock."""
        auth = Settings().auth
        keys = KeyRing.load(self.state_dir / "keys", create=False)
        tokens = Tokens(
            keys, issuer=auth.issuer, audience=auth.audience, longest=1e9, clock=lambda: self.clock.now()
        )
        publish = ["**"] if kind is TokenKind.ACCESS else []
        return tokens.issue(kind, subject, new_id(), Grants.of(["**"], publish), ttl)


@pytest.fixture(scope="session")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clock, compiled."""
    return compiled(SOURCE, tmp_path_factory.mktemp("clock"))


@pytest.fixture
def wall_clock(clock_library: Path, tmp_path: Path) -> Iterator[WallClock]:
    """The wall clock of the servers of a test, which shows the machine's time at first."""
    clock = WallClock(clock_library, tmp_path / "clock")
    yield clock
    clock.close()


@pytest.fixture
def start(wall_clock: WallClock, tmp_path: Path) -> Iterator[Callable[..., ClockedServer]]:
    """A function that starts a server by the clock; its log is checked at the end."""
    defaults = {"state_dir": tmp_path / "state", "KEEPALIVE__PING_INTERVAL": 0.5}
    yield from starting(lambda **settings: ClockedServer(wall_clock, **{**defaults, **settings}))


@pytest.fixture
def hear() -> Iterator[Hear]:
    """A function that opens streams, which are left at the end."""
    ears: list[Ear] = []

    def hear(server: ClockedServer, channels: str, token: str, client_id: str = "") -> Ear:
        ears.append(Ear(server, channels, token, client_id))
        return ears[-1]

    yield hear
    for ear in ears:
        ear.leave()
