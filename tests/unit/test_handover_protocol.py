"""The end of the exchange between two processes, of which one is stopped for a while."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from sse_app.handover import protocol
from sse_app.handover.protocol import ControlChannel, Successor, UpgradeFailed


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ControlChannel, Successor]]:
    """The control channel of the process before, and its successor, which waits for a tenth of a second."""
    monkeypatch.setattr(protocol, "TAKEOVER_TIMEOUT", 0.1)
    monkeypatch.setattr(protocol, "MAINPID_TIMEOUT", 0.1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, sending, receiving:
        yield ControlChannel(ours), Successor(theirs, receiving)


def test_a_word_that_comes_too_late_is_not_said_and_both_know_it(
    before: tuple[ControlChannel, Successor],
) -> None:
    control, successor = before
    with pytest.raises(UpgradeFailed, match="'go' did not come"):
        successor.serve()
    control.receive_blocking("serving", 1.0)
    with pytest.raises(UpgradeFailed):
        control.send("go")


def test_a_word_that_was_said_just_before_counts(
    before: tuple[ControlChannel, Successor], monkeypatch: pytest.MonkeyPatch
) -> None:
    control, successor = before
    shut_down = ControlChannel.shut_down

    def shut_down_late(self: ControlChannel) -> None:
        control.send("go")
        shut_down(self)

    monkeypatch.setattr(ControlChannel, "shut_down", shut_down_late)
    assert successor.serve() is False  # whether systemd was told is asked of systemd then
    with pytest.raises(UpgradeFailed):
        control.send("told")


def test_a_word_in_time_is_heard_and_what_comes_behind_it(
    before: tuple[ControlChannel, Successor], monkeypatch: pytest.MonkeyPatch
) -> None:
    control, successor = before
    monkeypatch.setattr(protocol, "TAKEOVER_TIMEOUT", 30.0)
    monkeypatch.setattr(protocol, "MAINPID_TIMEOUT", 30.0)
    told: list[bool] = []
    thread = threading.Thread(target=lambda: told.append(successor.serve()))
    thread.start()
    control.receive_blocking("serving", 10.0)
    control.send("go")
    control.send("told")
    thread.join()
    assert told == [True]
