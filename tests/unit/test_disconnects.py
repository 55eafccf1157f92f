"""Who leaves is noticed, with one epoll for all and without one; who is forgotten is not, and nobody harms another."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket
from collections.abc import Iterator

import pytest

from sse_app.streams import disconnects as module
from sse_app.streams.disconnects import SOCKETS_PER_POLL, Disconnects
from tests.support.waiting import until_async


@pytest.fixture(params=["with epoll", "without epoll"], autouse=True)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that has epoll, or one that has not."""
    if request.param == "without epoll":
        monkeypatch.setattr(module, "_EPOLL", False)


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Fail a test that leaves a descriptor open."""
    gc.collect()  # what earlier tests have left to it
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert not set(os.listdir("/proc/self/fd")) - before


def prepared() -> Disconnects:
    """Return what notices who leaves from now on."""
    disconnects = Disconnects()
    disconnects.prepare()
    return disconnects


class Watched:
    """A connection whose end is to be noticed, as a stream's is: it is forgotten before it is closed."""

    def __init__(self, disconnects: Disconnects) -> None:
        self._disconnects = disconnects
        self.ours, self.peer = socket.socketpair()
        self.ours.setblocking(False)
        self.noticed = 0
        self.heard = b""
        self.with_it: list[Watched] = []
        """Whom its own end ends too."""
        disconnects.watch(self.ours.fileno(), self)

    def readable(self) -> None:
        """Notice what the peer says, or that it has gone."""
        self.noticed += 1
        assert self.ours.fileno() >= 0
        if piece := self.ours.recv(100):
            self.heard += piece
            return
        for other in [self, *self.with_it]:
            other.close()

    @property
    def ended(self) -> bool:
        """Whether our end is closed."""
        return self.ours.fileno() < 0

    def close(self) -> None:
        """End it."""
        if not self.ended:
            self._disconnects.forget(self.ours.fileno())
            self.ours.close()
        self.peer.close()


async def settled(*watched: Watched) -> None:
    """Wait until the end of each has been noticed."""
    await until_async(lambda: all(one.ended for one in watched), "each end is noticed", pause=0)


async def everything_noticed(disconnects: Disconnects) -> None:
    """Wait until one that begins now has been noticed: whatever came before it has been too, if it ever is."""
    for _ in range(2):
        last = Watched(disconnects)
        last.peer.close()
        await settled(last)


@pytest.mark.gen_test
async def test_a_peer_that_goes_is_noticed_and_the_others_are_left_alone() -> None:
    disconnects = prepared()
    leaving, staying = Watched(disconnects), Watched(disconnects)
    leaving.peer.close()
    await settled(leaving)
    await everything_noticed(disconnects)
    assert (leaving.noticed, staying.noticed) == (1, 0)
    staying.close()
    disconnects.close()


@pytest.mark.gen_test
async def test_a_peer_that_speaks_is_heard_as_often_as_it_does() -> None:
    disconnects = prepared()
    one = Watched(disconnects)
    for number in range(1, 4):
        one.peer.send(b"x")
        await until_async(lambda number=number: one.noticed == number, "it is noticed again", pause=0)
    assert one.heard == b"xxx"
    one.peer.close()
    await settled(one)
    disconnects.close()


class Failing(Watched):
    """One whose owner makes an error of each notice."""

    def readable(self) -> None:
        super().readable()
        raise ValueError("an error of ours")


@pytest.mark.expects_logs("uncaught")
@pytest.mark.gen_test
async def test_an_error_of_one_is_told_once_and_keeps_nothing_from_the_others() -> None:
    disconnects = prepared()
    failing = [Failing(disconnects) for _ in range(3)]
    good = Watched(disconnects)
    for one in (*failing, good):
        one.peer.send(b"x")
    await until_async(lambda: good.noticed and all(one.noticed for one in failing), "all are noticed")
    for one in failing:
        one.peer.send(b"x")
    await everything_noticed(disconnects)
    assert [one.noticed for one in failing] == [1, 1, 1]
    for one in (*failing, good):
        one.close()
    disconnects.close()


@pytest.mark.gen_test
async def test_a_peer_that_had_gone_before_it_was_watched_is_noticed() -> None:
    disconnects = prepared()
    one = Watched(disconnects)
    disconnects.forget(one.ours.fileno())
    one.peer.close()
    disconnects.watch(one.ours.fileno(), one)
    await settled(one)
    disconnects.close()


@pytest.mark.gen_test
async def test_who_is_forgotten_is_not_told_and_may_be_forgotten_twice() -> None:
    disconnects = prepared()
    one = Watched(disconnects)
    for _ in range(2):
        disconnects.forget(one.ours.fileno())
    one.peer.close()
    await everything_noticed(disconnects)
    assert one.noticed == 0
    one.ours.close()
    disconnects.close()


@pytest.mark.gen_test
async def test_one_that_ends_another_in_the_same_turn_does_no_harm() -> None:
    """Whichever of the two comes first: the other one's socket is closed already."""
    disconnects = prepared()
    pairs = [(Watched(disconnects), Watched(disconnects)) for _ in range(20)]
    for first, second in pairs:
        first.with_it, second.with_it = [second], [first]
    for first, second in pairs:
        first.peer.close()
        second.peer.close()
    await settled(*(one for pair in pairs for one in pair))
    await everything_noticed(disconnects)
    assert all(first.noticed + second.noticed == 1 for first, second in pairs)
    disconnects.close()


@pytest.mark.gen_test
async def test_one_that_takes_the_number_of_another_is_itself() -> None:
    """A descriptor that is closed is the next one's."""
    disconnects = prepared()
    before = Watched(disconnects)
    number = before.ours.fileno()
    before.close()
    after = Watched(disconnects)
    assert number in (after.ours.fileno(), after.peer.fileno())
    after.peer.close()
    await settled(after)
    assert (before.noticed, after.noticed) == (0, 1)
    disconnects.close()


@pytest.mark.gen_test
async def test_many_that_go_at_once_are_all_noticed_and_others_run_in_between() -> None:
    disconnects = prepared()
    watched = [Watched(disconnects) for _ in range(SOCKETS_PER_POLL + 50)]
    turns: list[int] = []
    for one in watched:
        one.peer.close()
    while not all(one.ended for one in watched):
        await asyncio.sleep(0)
        turns.append(sum(one.ended for one in watched))
    if module._EPOLL:
        assert (
            max(after - before for before, after in zip([0, *turns], turns, strict=False)) <= SOCKETS_PER_POLL
        )
    assert all(one.noticed == 1 for one in watched)
    disconnects.close()


@pytest.mark.gen_test
async def test_a_peer_that_goes_while_it_is_suspended_is_noticed_after_that() -> None:
    disconnects = prepared()
    leaving, ended, staying = (Watched(disconnects) for _ in range(3))
    disconnects.suspend()
    leaving.peer.close()
    ended.close()
    if module._EPOLL:
        assert select.select([leaving.ours], [], [], 10)[0]
        await asyncio.sleep(0)
        assert leaving.noticed == 0
    disconnects.resume()
    await settled(leaving)
    await everything_noticed(disconnects)
    assert (leaving.noticed, ended.noticed, staying.noticed) == (1, 0, 0)
    staying.peer.close()
    await settled(staying)
    disconnects.close()


@pytest.mark.gen_test
async def test_while_it_is_suspended_streams_come_and_go_and_all_that_are_left_are_watched_after_that() -> (
    None
):
    """As between the moment in which a handover begins and that in which it fails."""
    disconnects = prepared()
    ended, leaving, staying = (Watched(disconnects) for _ in range(3))
    disconnects.suspend()
    came, went = Watched(disconnects), Watched(disconnects)
    ended.close()
    went.close()
    disconnects.resume()
    leaving.peer.close()
    came.peer.close()
    await settled(leaving, came)
    await everything_noticed(disconnects)
    assert [one.noticed for one in (ended, leaving, staying, came, went)] == [0, 1, 0, 1, 0]
    staying.close()
    disconnects.close()


@pytest.mark.gen_test
async def test_to_suspend_or_resume_twice_is_to_do_it_once() -> None:
    disconnects = prepared()
    disconnects.resume()
    one = Watched(disconnects)
    disconnects.suspend()
    disconnects.suspend()
    disconnects.resume()
    disconnects.resume()
    one.peer.close()
    await settled(one)
    disconnects.close()


@pytest.mark.gen_test
async def test_to_close_twice_or_before_anybody_was_watched_does_no_harm() -> None:
    disconnects = prepared()
    disconnects.close()
    Watched(disconnects).close()
    disconnects.close()
    disconnects.close()


@pytest.mark.gen_test
async def test_one_that_ends_after_everything_is_closed_does_no_harm() -> None:
    disconnects = prepared()
    one = Watched(disconnects)
    disconnects.close()
    one.close()


@pytest.mark.gen_test
async def test_a_peer_that_has_ended_its_side_is_noticed_once_and_again_when_it_goes() -> None:
    disconnects = prepared()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    noticed: list[bytes] = []

    class HalfClosed:
        def readable(self) -> None:
            noticed.append(ours.recv(100))
            if len(noticed) == 1:
                disconnects.ignore_input(ours.fileno())
            else:
                disconnects.forget(ours.fileno())

    disconnects.watch(ours.fileno(), HalfClosed())
    peer.shutdown(socket.SHUT_WR)
    await until_async(lambda: noticed, "its end is noticed", pause=0)
    await everything_noticed(disconnects)
    assert noticed == [b""]
    peer.close()
    ours.send(b"x")  # which is answered with a reset
    if module._EPOLL:
        await until_async(lambda: len(noticed) == 2, "that it has gone is noticed", pause=0)
    await everything_noticed(disconnects)
    assert len(noticed) == (2 if module._EPOLL else 1)
    disconnects.forget(ours.fileno())
    ours.close()
    disconnects.close()
