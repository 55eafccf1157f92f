"""The node: its parts are there from the start, none of them knows the node, and a reload is all or nothing."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sse_app.auth.tokens.keyring import rotate
from sse_app.core.channels import ChannelName
from sse_app.core.errors import StateError, UnknownChannel
from sse_app.core.events import NewEvent
from sse_app.eventlog.sqlite.log import SqliteEventLog
from sse_app.node import Node
from sse_app.settings.model import Auth, History, Limits, Settings, StreamSettings
from tests.support.waiting import until_async


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a node whose event log is in memory."""
    return Settings(state_dir=tmp_path / "state", event_log="memory:", channels=("old",))


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Node]:
    node = Node(settings)
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


@pytest.mark.gen_test
async def test_every_part_is_there_before_the_start_and_no_other_comes(settings: Settings) -> None:
    node = Node(settings)
    made = dict(vars(node))
    await node.start()
    await node.stop()
    assert vars(node).keys() == made.keys()
    assert {name for name, part in vars(node).items() if part is not made[name]} <= {"_auth_is_open"}


@pytest.mark.gen_test
async def test_no_part_holds_the_node(settings: Settings) -> None:
    async with running(settings) as node:
        for name, part in vars(node).items():
            held = list(vars(part).values()) if hasattr(part, "__dict__") else []
            assert not any(one is node for one in held), name


@pytest.mark.gen_test
async def test_a_node_that_never_started_can_be_stopped(settings: Settings) -> None:
    await Node(settings).stop()
    async with running(settings) as node:  # nothing of the first is in its way
        assert node.lifecycle.ready
    assert not node.lifecycle.ready
    assert node.lifecycle.draining


@pytest.mark.gen_test
async def test_a_reload_puts_settings_in_force_and_names_those_that_need_a_restart(
    settings: Settings, tmp_path: Path
) -> None:
    async with running(settings) as node:
        kept = node.reload(
            Settings(
                state_dir=tmp_path / "state",
                event_log="memory:",
                channels=("new",),
                history=History(size=5),
                limits=Limits(backlog_bytes=7, publish_rate=3),
                stream=StreamSettings(retry=5000),
                auth=Auth(longest_lifetime=99, access_lifetime=98, stream_lifetime=97),
            )
        )
        assert kept == ["history"]
        assert node.settings.history == settings.history
        node.publisher.require_known(ChannelName("new"))
        with pytest.raises(UnknownChannel):
            node.publisher.require_known(ChannelName("old"))
        assert (node.hub.backlog_limit, node.hub.retry) == (7, 5000)
        assert (node.publish_rate.rate, node.tokens.longest) == (3, 99)


@pytest.mark.gen_test
async def test_a_reload_with_bad_keys_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "short.hs256").write_bytes(b"short")
    async with running(settings) as node:
        before = dict(vars(node))
        keys = node.tokens.keys
        with pytest.raises(StateError, match="short"):
            node.reload(
                Settings(
                    state_dir=tmp_path / "state",
                    event_log="memory:",
                    channels=("new",),
                    limits=Limits(backlog_bytes=7),
                    auth=Auth(keys_dir=str(tmp_path / "bad"), longest_lifetime=99),
                )
            )
        assert vars(node) == before
        assert node.tokens.keys is keys
        assert node.tokens.longest == settings.auth.longest_lifetime
        assert node.hub.backlog_limit == settings.limits.backlog_bytes
        node.publisher.require_known(ChannelName("old"))


@pytest.mark.gen_test
async def test_after_a_reload_new_keys_are_looked_for_where_the_settings_say(
    settings: Settings, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    async with running(settings) as node:
        auth = Auth(keys_dir=str(elsewhere))
        node.reload(Settings(state_dir=tmp_path / "state", event_log="memory:", channels=("old",), auth=auth))
        kid, _ = rotate(elsewhere, "EdDSA", time.time() - auth.longest_lifetime)
        await until_async(lambda: node.tokens.keys.signing.id == kid, "the node notices the new key")


@pytest.mark.gen_test
async def test_the_live_figures_go_on_while_the_event_log_cannot_be_read(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state", channels=("a", "b"))
    async with running(settings) as node:
        other = SqliteEventLog(node.state.events)
        await other.open()
        (id,) = await other.append([NewEvent(ChannelName("a"), "e", b"{}")])
        await until_async(lambda: node.eventlog.head == id, "the node knows that it is not alone")
        node.live_stats.stop()  # what it computes by itself each second would be among those below
        node.live_stats._want("", None)  # as another worker does while an administrator watches
        await node.live_stats.tick()
        await node.eventlog.close()
        await node.live_stats.tick()
        before, after = (json.loads(figures)["channels"] for figures in node.live_stats.recent)
        assert [row["events"] for row in before] == [1, 0]
        assert after == before
        await other.close()
