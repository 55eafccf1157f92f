"""The control channel between workers: who is there, what is asked and told, and workers that hang, die or change."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sse_app.cluster import link as links
from sse_app.cluster import workers as workers_module
from sse_app.cluster.base import ASK_TIMEOUT, Alone, Answers
from sse_app.cluster.factory import make_cluster
from sse_app.cluster.workers import Workers
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import StateDirectory
from tests.support.waiting import until_async

pytestmark = pytest.mark.gen_test

OTHER = """
import asyncio, sys
from pathlib import Path
from sse_app.cluster.workers import Workers

async def main():
    worker = Workers(int(sys.argv[1]), Path(sys.argv[2]))
    asked = []
    worker.answer("echo", lambda node, payload: asked.append(payload) or [node, payload, sys.argv[3]])
    worker.answer("count", lambda node, payload: len(asked))
    await worker.start()
    print("started", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
"""A worker in a process of its own; its arguments are its number, the directory, and a word that it answers with."""


def _directory(tmp_path: Path, *numbers: int) -> Path:
    directory = tmp_path / "workers"
    for number in numbers:
        (directory / str(number)).mkdir(mode=0o700, parents=True)
    return directory


def _echo(name: str, node: str, payload: Any) -> list[Any]:
    return [node, payload, name]


@asynccontextmanager
async def _workers(directory: Path, *numbers: int) -> AsyncIterator[list[Workers]]:
    """Start workers that have found each other, and stop them."""
    started = [Workers(number, directory) for number in numbers]
    try:
        for one in started:
            one.answer("echo", partial(_echo, one.name))
            await one.start()
        names = {one.name for one in started}
        await until_async(
            lambda: all(names <= {one.name, *one.peers()} for one in started), "all know each other"
        )
        yield started
    finally:
        for one in started:
            one.stop()
        await asyncio.sleep(0.05)


@contextmanager
def _other(directory: Path, number: int, word: str = "first") -> Iterator[subprocess.Popen[str]]:
    """Run a worker in a process of its own."""
    command = [sys.executable, "-c", OTHER, str(number), str(directory), word]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


async def test_a_process_alone_answers_itself_and_has_no_socket(tmp_path: Path) -> None:
    alone = make_cluster(StateDirectory(tmp_path / "state"), Settings())
    assert isinstance(alone, Alone)
    alone.answer("echo", lambda node, payload: [node, payload])
    await alone.start()
    assert (alone.name, alone.peers()) == ("", ())
    assert await alone.ask("echo", 1) == Answers({"": ["", 1]}, ())
    assert await alone.ask("echo", 1, to=alone.peers()) == Answers({}, ())
    assert await alone.ask("no such kind") == Answers({}, ("",))
    alone.tell("echo", 1)
    alone.stop()
    assert [path.name for path in (tmp_path / "state").iterdir()] == []


async def test_each_worker_asks_and_tells_all_others(tmp_path: Path) -> None:
    directory = _directory(tmp_path, 1, 2, 10)
    async with _workers(directory, 10, 1, 2) as (ten, one, two):
        assert ten.peers() == ("1", "2")
        assert one.peers() == ("2", "10")
        payload = {"text": "é", "bytes": b"\0", "list": [1, 2.5, None, True]}
        assert await one.ask("echo", payload) == Answers(
            {"1": ["1", payload, "1"], "2": ["1", payload, "2"], "10": ["1", payload, "10"]}, ()
        )
        assert await one.ask("echo", 0, to=["10"]) == Answers({"10": ["1", 0, "10"]}, ())
        told: list[Any] = []
        for worker in (ten, one, two):
            worker.answer("note", partial(lambda *members: told.append(members), worker.name))
        for number in range(100):
            two.tell("note", number)
        await until_async(lambda: len(told) == 200, "all is told")
        assert [each for each in told if each[0] == "1"] == [("1", "2", number) for number in range(100)]
        assert {each[0] for each in told} == {"1", "10"}
        modes = {path.name: path.lstat().st_mode & 0o777 for path in directory.glob("*/*")}
        assert modes == {"control": 0o600}
    assert list(directory.glob("*/*")) == []


async def test_an_answer_may_take_its_time_and_others_come_meanwhile(tmp_path: Path) -> None:
    async with _workers(_directory(tmp_path, 1, 2), 1, 2) as (one, two):
        ready = asyncio.Event()

        async def slow(node: str, payload: Any) -> Any:
            await ready.wait()
            return payload

        two.answer("slow", slow)
        waiting = asyncio.create_task(one.ask("slow", "late", to=["2"]))
        assert (await one.ask("echo", "soon", to=["2"])).by_node == {"2": ["1", "soon", "2"]}
        ready.set()
        assert (await waiting).by_node == {"2": "late"}


@pytest.mark.expects_logs("uncaught: broken")
async def test_a_kind_that_is_not_known_or_fails_has_no_answer_and_is_not_waited_for(tmp_path: Path) -> None:
    async with _workers(_directory(tmp_path, 1, 2), 1, 2) as (one, two):
        two.answer("broken", lambda node, payload: payload["nothing"])
        two.answer("large", lambda node, payload: bytes(links.MAX_BYTES))
        begun = time.monotonic()
        for kind in ("of a newer version", "broken", "large"):
            assert await one.ask(kind, {}, to=["2"]) == Answers({}, ("2",))
        one.tell("of a newer version", {})
        assert (await one.ask("echo", 1, to=["2"])).by_node == {"2": ["1", 1, "2"]}
        assert time.monotonic() - begun < 1.9
        with pytest.raises(ValueError, match="longer than"):
            one.tell("note", bytes(links.MAX_BYTES))


async def test_large_messages_arrive_whole(tmp_path: Path) -> None:
    async with _workers(_directory(tmp_path, 1, 2), 1, 2) as (one, _):
        large = os.urandom(links.MAX_BYTES - 100)
        answers = await asyncio.gather(*(one.ask("echo", large[size:], 30.0, ["2"]) for size in (0, 7)))
        assert answers[0].by_node["2"][1] == large
        assert answers[1].by_node["2"][1] == large[7:]


@pytest.mark.expects_logs("worker_silent")
async def test_a_worker_that_hangs_is_named_and_costs_the_full_wait_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = _directory(tmp_path, 1, 2, 3)
    async with _workers(directory, 1, 2) as (one, _):
        with _other(directory, 3) as other:
            await until_async(lambda: one.peers() == ("2", "3"), "3 is found")
            other.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            answers = await one.ask("echo", 1)
            assert (set(answers.by_node), answers.missing) == ({"1", "2"}, ("3",))
            assert time.monotonic() - begun >= 1.9
            again = time.monotonic()
            for _ in range(5):
                assert (await one.ask("echo", 1)).missing == ("3",)
            assert time.monotonic() - again < 5 * ASK_TIMEOUT * 0.9
            # What it is told meanwhile is kept up to a bound, and then dropped.
            for _ in range(64):
                one.tell("note", bytes(1024 * 1024))
            assert (await one.ask("echo", 1)).missing == ("3",)
            other.send_signal(signal.SIGCONT)

            answered = 0

            async def answers_again() -> bool:
                nonlocal answered
                found = "3" in (await one.ask("echo", 1)).by_node
                answered += found
                return found

            await until_async(answers_again, "it answers again")
            # What was asked in vain is not done late: the asker was told that it was not.
            (heard,) = (await one.ask("count", to=["3"])).by_node.values()
            assert heard <= 1 + answered, "a question was answered after its time"
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("worker_silent") == 1, lines


async def test_a_worker_that_is_killed_is_missing_until_it_is_back_or_has_been_away_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = _directory(tmp_path, 1, 2)
    async with _workers(directory, 1) as (one,):
        with _other(directory, 2):
            await until_async(lambda: one.peers() == ("2",), "2 is found")
        begun = time.monotonic()
        assert await one.ask("echo", 1) == Answers({"1": ["1", 1, "1"]}, ("2",))
        assert time.monotonic() - begun < 1.9, "it waited longer than a successor may take"
        assert one.peers() == ("2",)
        with _other(directory, 2, "second"):

            async def answers() -> bool:
                return (await one.ask("echo", 1)).by_node.get("2") == ["1", 1, "second"]

            await until_async(answers, "the next process answers")
        monkeypatch.setattr(workers_module, "FORGET_TIME", 0.0)
        await until_async(lambda: one.peers() == (), "it is forgotten")
        await asyncio.sleep(1.1)
        assert one.peers() == ()


async def test_what_was_asked_of_a_worker_that_is_handed_over_is_answered_by_its_successor(
    tmp_path: Path,
) -> None:
    directory = _directory(tmp_path, 1, 2)
    async with _workers(directory, 1) as (one,):
        with _other(directory, 2, "before") as before:
            await until_async(lambda: one.peers() == ("2",), "2 is found")
            before.send_signal(signal.SIGSTOP)  # as in the pause of a handover
            asked = asyncio.create_task(one.ask("echo", "q", 30.0, ["2"]))
            await asyncio.sleep(0.05)
            with _other(directory, 2, "after"):
                before.kill()
                assert (await asked).by_node == {"2": ["1", "q", "after"]}
                assert (await one.ask("echo", "q", to=["2"])).by_node == {"2": ["1", "q", "after"]}


async def test_a_worker_that_stops_leaves_the_socket_of_its_successor_alone(tmp_path: Path) -> None:
    directory = _directory(tmp_path, 1, 2)
    async with _workers(directory, 1) as (one,), _workers(directory, 2) as (before,):
        async with _workers(directory, 2):
            before.stop()
            assert (directory / "2/control").is_socket()
            await until_async(lambda: one.peers() == ("2",), "2 is found")
            answers = await one.ask("echo", 1, to=["2"])
            assert answers.by_node == {"2": ["1", 1, "2"]}
        await until_async(lambda: one.peers() == (), "it has left")


async def test_a_path_of_any_length_will_do(tmp_path: Path) -> None:
    directory = _directory(tmp_path / ("long" * 30), 1, 2)
    async with _workers(directory, 1, 2) as (one, _):
        assert (await one.ask("echo", 1, to=["2"])).by_node == {"2": ["1", 1, "2"]}


async def test_junk_ends_the_connection_and_nothing_else(tmp_path: Path) -> None:
    directory = _directory(tmp_path, 1, 2)
    async with _workers(directory, 1, 2) as (one, _):
        for junk in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x01\xc1",
            b"\0\0\0\x01\x05",
            b"\0\0\0\x01\x90",
            b"\0\0\0\x05\x92\x01\xa2\xff\xfe",  # a text that is no UTF-8
            (5001).to_bytes(4, "big") + b"\x91" * 5000 + b"\x01",  # 5000 lists, each in the one before
        ):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.setblocking(False)
                stranger.connect(str(directory / "2/control"))
                stranger.send(junk)
                got = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(stranger, 10), 30)
                assert got == b""
        with socket.socket(socket.AF_UNIX) as stranger:  # of a newer version
            stranger.connect(str(directory / "2/control"))
            for message in (
                [99, "what"],
                ["text"],
                [links.HELLO, "7", "more"],
                [links.HELLO],
                [links.ASK, 1],
            ):
                body = msgspec.msgpack.encode(message)
                stranger.send(len(body).to_bytes(4, "big") + body)
            await asyncio.sleep(0.05)
            assert (await one.ask("echo", 1, to=["2"])).by_node == {"2": ["1", 1, "2"]}


async def test_a_process_of_another_user_is_not_listened_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = _directory(tmp_path, 1, 2)
    async with _workers(directory, 1, 2) as (_, _):
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.setblocking(False)
            stranger.connect(str(directory / "2/control"))
            got = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(stranger, 10), 30)
            assert got == b""
        monkeypatch.undo()
