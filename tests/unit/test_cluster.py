"""The control channel between workers: who is there, what is asked and told, and workers that hang, die or change."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sse_app.cluster import link as links
from sse_app.cluster.base import Alone, Answers
from sse_app.cluster.factory import _name_of_host, make_cluster
from sse_app.cluster.workers import Workers
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import StateDirectory
from tests.support.waiting import until_async

pytestmark = pytest.mark.gen_test


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


async def test_sockets_are_private_and_removed(tmp_path: Path) -> None:
    directory = _directory(tmp_path, 1, 2, 10)
    async with _workers(directory, 10, 1, 2) as (ten, one, _):
        assert ten.peers() == ("1", "2")
        assert one.peers() == ("2", "10")
        modes = {path.name: path.lstat().st_mode & 0o777 for path in directory.glob("*/*")}
        assert modes == {"control": 0o600}
    assert list(directory.glob("*/*")) == []


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


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("web1.example.com", "web1"),
        ("web_1", "web_1"),
        ("-x", "x"),
        ("büro", "b-ro"),
        ("", "node"),
        ("a" * 80, "a" * 63),
    ],
)
def test_a_node_is_named_after_its_host(host: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert _name_of_host() == name
    assert Settings(node=name).node == name
