"""What a cluster promises, between workers over sockets and between machines over PostgreSQL: who is there, what is
asked and told, and nodes that hang, die or change."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sse_app.cluster import link as links
from sse_app.cluster import registry as registry_module
from sse_app.cluster import workers as workers_module
from sse_app.cluster.base import ASK_TIMEOUT, Answers, Cluster
from tests.support.cluster_nodes import LONG, make_node
from tests.support.preloaded import module, start
from tests.support.waiting import until_async

pytestmark = pytest.mark.gen_test


class Kind:
    """One implementation, and how nodes of it are made.

    Args:
        where: what its nodes share.
    """

    word: str
    named: str
    silent: str
    forgets: Any
    within: float
    """For how many seconds a node that was killed a moment ago is given to answer."""

    longest_wait: float
    """For how many seconds it is waited for, at most."""

    def __init__(self, where: str) -> None:
        self.where = where

    def make(self, number: int) -> Cluster:
        return make_node(self.word, number, self.where)

    def name(self, number: int) -> str:
        return self.named.format(number)

    @asynccontextmanager
    async def nodes(self, *numbers: int) -> AsyncIterator[list[Cluster]]:
        """Start nodes that have found each other, and stop them."""
        started = [self.make(number) for number in numbers]
        try:
            for one in started:
                one.answer("echo", partial(_echo, one.name))
                await one.open()
                await one.start()
            names = {one.name for one in started}
            await until_async(
                lambda: all(names <= {one.name, *one.peers()} for one in started), "all know each other"
            )
            yield started
        finally:
            for one in started:
                one.stop()
                await one.close()
            await asyncio.sleep(0.05)

    @contextmanager
    def other(self, number: int, word: str = "first") -> Iterator[subprocess.Popen[str]]:
        """Run a node in a process of its own."""
        with start(
            [self.word, str(number), self.where, word],
            environment=os.environ,
            program=module("tests.support.cluster_nodes"),
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "started\n"
                yield process
            finally:
                process.kill()


class OfWorkers(Kind):
    """Workers of one machine."""

    word, named, silent, forgets = "workers", "{}", "worker_silent", workers_module
    within, longest_wait = LONG, LONG - 1  # the end of the connection shows it


class OfMachines(Kind):
    """Nodes on several machines, each at a place of its own."""

    word, named, silent, forgets = "machines", "web{}", "node_silent", registry_module
    within, longest_wait = ASK_TIMEOUT, 2 * ASK_TIMEOUT - 0.1


@pytest.fixture(params=[OfWorkers, OfMachines], ids=["workers", "machines"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    if request.param is OfMachines:
        return OfMachines(request.getfixturevalue("database_url"))
    directory = tmp_path / "workers"
    for number in (1, 2, 3, 10):
        (directory / str(number)).mkdir(mode=0o700, parents=True)
    return OfWorkers(str(directory))


def _echo(name: str, node: str, payload: Any) -> list[Any]:
    return [node, payload, name]


async def test_each_node_asks_and_tells_all_others(kind: Kind) -> None:
    async with kind.nodes(10, 1, 2) as (ten, one, two):
        assert ten.peers() == (one.name, two.name)
        assert one.peers() == (two.name, ten.name)
        payload = {"text": "é", "bytes": b"\0", "list": [1, 2.5, None, True]}
        assert await one.ask("echo", payload, LONG) == Answers(
            {
                one.name: [one.name, payload, one.name],
                two.name: [one.name, payload, two.name],
                ten.name: [one.name, payload, ten.name],
            },
            (),
        )
        assert await one.ask("echo", 0, LONG, [ten.name]) == Answers({ten.name: [one.name, 0, ten.name]}, ())
        told: list[Any] = []
        for node in (ten, one, two):
            node.answer("note", partial(lambda *members: told.append(members), node.name))
        for number in range(100):
            two.tell("note", number)
        await until_async(lambda: len(told) == 200, "all is told")
        assert [each for each in told if each[0] == one.name] == [
            (one.name, two.name, number) for number in range(100)
        ]
        assert {each[0] for each in told} == {one.name, ten.name}


async def test_an_answer_may_take_its_time_and_others_come_meanwhile(kind: Kind) -> None:
    async with kind.nodes(1, 2) as (one, two):
        ready = asyncio.Event()

        async def slow(node: str, payload: Any) -> Any:
            await ready.wait()
            return payload

        two.answer("slow", slow)
        waiting = asyncio.create_task(one.ask("slow", "late", LONG, [two.name]))
        assert (await one.ask("echo", "soon", LONG, [two.name])).by_node == {
            two.name: [one.name, "soon", two.name]
        }
        ready.set()
        assert (await waiting).by_node == {two.name: "late"}


@pytest.mark.expects_logs("uncaught: broken")
async def test_a_kind_that_is_not_known_or_fails_has_no_answer_and_is_not_waited_for(kind: Kind) -> None:
    async with kind.nodes(1, 2) as (one, two):
        two.answer("broken", lambda node, payload: payload["nothing"])
        two.answer("large", lambda node, payload: bytes(links.MAX_BYTES))
        begun = time.monotonic()
        for about in ("of a newer version", "broken", "large"):
            assert await one.ask(about, {}, LONG, [two.name]) == Answers({}, (two.name,))
        one.tell("of a newer version", {})
        assert (await one.ask("echo", 1, LONG, [two.name])).by_node == {two.name: [one.name, 1, two.name]}
        assert time.monotonic() - begun < LONG
        with pytest.raises(ValueError, match="longer than"):
            one.tell("note", bytes(links.MAX_BYTES))


@pytest.mark.slow
async def test_large_messages_arrive_whole(kind: Kind) -> None:
    async with kind.nodes(1, 2) as (one, _):
        large = os.urandom(links.MAX_BYTES - 100)
        answers = await asyncio.gather(
            *(one.ask("echo", large[size:], 30.0, [kind.name(2)]) for size in (0, 7))
        )
        assert answers[0].by_node[kind.name(2)][1] == large
        assert answers[1].by_node[kind.name(2)][1] == large[7:]


@pytest.mark.expects_logs("worker_silent", "node_silent")
async def test_a_node_that_hangs_is_named_and_costs_the_full_wait_once(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    async with kind.nodes(1, 2) as (one, _):
        with kind.other(3) as other:
            await until_async(lambda: one.peers() == (kind.name(2), kind.name(3)), "3 is found")
            other.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            answers = await one.ask("echo", 1)
            assert (set(answers.by_node), answers.missing) == ({one.name, kind.name(2)}, (kind.name(3),))
            assert time.monotonic() - begun >= 1.9
            again = time.monotonic()
            for _ in range(5):
                assert (await one.ask("echo", 1)).missing == (kind.name(3),)
            assert time.monotonic() - again < 5 * ASK_TIMEOUT * 0.9
            # What it is told meanwhile is kept up to a bound, and then dropped.
            for _ in range(64):
                one.tell("note", bytes(1024 * 1024))
            assert (await one.ask("echo", 1)).missing == (kind.name(3),)
            other.send_signal(signal.SIGCONT)

            answered = 0

            async def answers_again() -> bool:
                nonlocal answered
                found = kind.name(3) in (await one.ask("echo", 1)).by_node
                answered += found
                return found

            await until_async(answers_again, "it answers again")
            # What was asked in vain is not done late: the asker was told that it was not.
            (heard,) = (await one.ask("count", None, LONG, [kind.name(3)])).by_node.values()
            assert heard <= 1 + answered, "a question was answered after its time"
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count(kind.silent) == 1, lines


@pytest.mark.expects_logs("node_silent")
async def test_a_node_that_is_killed_is_missing_until_it_is_back_or_has_been_away_for_long(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kind.nodes(1) as (one,):
        with kind.other(2):
            await until_async(lambda: one.peers() == (kind.name(2),), "2 is found")
        begun = time.monotonic()
        found = await one.ask("echo", 1, kind.within)
        assert found == Answers({one.name: [one.name, 1, one.name]}, (kind.name(2),))
        assert time.monotonic() - begun < kind.longest_wait, "it waited longer than a successor may take"
        assert one.peers() == (kind.name(2),)
        with kind.other(2, "second"):

            async def answers() -> bool:
                return (await one.ask("echo", 1)).by_node.get(kind.name(2)) == [one.name, 1, "second"]

            await until_async(answers, "the next process answers")
        monkeypatch.setattr(kind.forgets, "FORGET_TIME", 0.0)
        await until_async(lambda: one.peers() == (), "it is forgotten")
        await asyncio.sleep(1.1)
        assert one.peers() == ()


async def test_what_was_asked_of_a_node_that_is_handed_over_is_answered_by_its_successor(
    kind: Kind,
) -> None:
    async with kind.nodes(1) as (one,):
        with kind.other(2, "before") as before:
            await until_async(lambda: one.peers() == (kind.name(2),), "2 is found")
            before.send_signal(signal.SIGSTOP)  # as in the pause of a handover
            asked = asyncio.create_task(one.ask("echo", "q", 30.0, [kind.name(2)]))
            await asyncio.sleep(0.05)
            with kind.other(2, "after"):
                before.kill()
                assert (await asked).by_node == {kind.name(2): [one.name, "q", "after"]}
                assert (await one.ask("echo", "q", LONG, [kind.name(2)])).by_node == {
                    kind.name(2): [one.name, "q", "after"]
                }
