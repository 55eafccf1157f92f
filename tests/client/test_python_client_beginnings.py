"""The Python client and the commands on streams that begin anywhere, carry anything, and come to an end."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.client import Connected, Event, Forbidden, Publisher, Refused, Stream, Waiting, presence
from tests.support.minting import mint
from tests.support.preloaded import start
from tests.support.python_client import QUICK, run, take
from tests.support.server_process import ServerProcess, run_program, running
from tests.support.waiting import until

CHANNELS = [
    {"pattern": "user.**"},
    {"pattern": "alerts"},
    {"pattern": "open.**", "public": True},
    {"pattern": "cursors", "stored": False},
    {"pattern": "quotes", "conflate": "symbol"},
]
VALUES: list[Any] = [
    "a\nb\r\rc\n",
    "",
    "<p>é</p>",
    '{"channel": "alerts"}',
    '{"channel": "else"}',
    [1, None],
    None,
    0,
    True,
    {"n": 1},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all of these tests, each of which has channels of its own."""
    state = tmp_path_factory.mktemp("beginnings") / "state"
    with running(state_dir=state, CHANNELS=CHANNELS, STREAM__RETRY=100) as started:
        yield started


def stream(server: ServerProcess, channels: str, **options: Any) -> Stream:
    return Stream(server.url, channels, server.stream_token("**"), backoff=QUICK, **options)


def shown(events: list[Event]) -> list[tuple[str, Any]]:
    return [(event.channel, event.data["n"]) for event in events]


def test_a_stream_begins_where_it_is_asked_to_and_goes_on_from_there_after_a_restart(
    server: ServerProcess,
) -> None:
    async def test() -> None:
        async with Publisher(server.url, server.access_token(), backoff=QUICK) as publisher:
            for n in range(4):
                await publisher.publish(f"user.begin.{n % 2}", "even" if n % 2 == 0 else "odd", {"n": n})
            both = "user.begin.*"
            everything = [(f"user.begin.{n % 2}", n) for n in range(4)]
            cases: list[tuple[dict[str, Any], list[tuple[str, int]]]] = [
                ({"begin": "earliest"}, everything),
                ({"last": 1}, everything[2:]),
                ({"since": timedelta(hours=1)}, everything),
                ({"since": 3600}, everything),
                ({"since": datetime(2000, 1, 1, tzinfo=UTC)}, everything),
                ({"begin": "earliest", "types": ["odd"]}, [everything[1], everything[3]]),
            ]
            for options, expected in cases:
                async with stream(server, both, **options) as opened:
                    assert shown(await take(opened, len(expected))) == expected, options
            for refused in ({"last": 0}, {"begin": "nowhere"}, {"types": "a b"}, {"rate": 0}):
                with pytest.raises(Refused, match="400"):
                    async with stream(server, both, **refused) as opened:
                        await anext(opened)
            with pytest.raises(ValueError, match="exclude"):
                stream(server, both, last=1, begin="earliest")
            with pytest.raises(ValueError, match="timezone"):
                stream(server, both, since=datetime(2000, 1, 1))
            async with stream(server, both, begin="earliest") as opened:
                assert shown(await take(opened, 4)) == everything
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                await publisher.publish("user.begin.new", "odd", {"n": 4})
                assert shown(await take(opened, 1)) == [("user.begin.new", 4)]

    run(test())


def test_data_of_any_kind_comes_as_it_was_published(server: ServerProcess) -> None:
    async def test() -> None:
        async with (
            Publisher(server.url, server.access_token()) as publisher,
            stream(server, "user.any") as alone,
            stream(server, "user.any,alerts") as among_others,
        ):
            await alone.opened()
            await among_others.opened()
            for value in VALUES:
                await publisher.publish("user.any", "value", value)
            for events in (await take(alone, len(VALUES)), await take(among_others, len(VALUES))):
                for event, value in zip(events, VALUES, strict=True):
                    if isinstance(value, str):
                        assert event.text == value.replace("\r", "\n")
                    elif isinstance(value, dict):
                        assert event.data.items() >= value.items()
                        assert event.channel == event.data["channel"] == "user.any"
                    else:
                        assert event.data == value
            # Which of the two it is cannot be told; a text that says so is believed where the stream has the channel.
            assert [event.channel for event in events[:5]] == ["", "", "", "alerts", ""]
        assert len({event.id for event in events}) == len(VALUES)

    run(test())


def test_a_final_event_ends_the_iteration_and_who_comes_back_has_what_it_missed(
    server: ServerProcess,
) -> None:
    async def test() -> None:
        states: list[Connected | Waiting] = []
        async with Publisher(server.url, server.access_token()) as publisher:
            async with stream(server, "user.final", on_state=states.append) as opened:
                await opened.opened()
                first = await publisher.publish("user.final", "token", "one")
                await publisher.publish("user.final", "token", "two", final=True)
                assert [item.text async for item in opened if isinstance(item, Event)] == ["one", "two"]
                last = opened.last_event_id
            assert [type(state) for state in states] == [Connected]
            async with stream(server, "user.final", after=first) as again:
                assert [item.text async for item in again if isinstance(item, Event)] == ["two"]
            async with stream(server, "user.final", after=last) as nothing:
                assert [item async for item in nothing] == []

    run(test())


def test_public_channels_and_events_that_are_not_stored(server: ServerProcess) -> None:
    async def test() -> None:
        async with (
            Publisher(server.url, server.access_token()) as publisher,
            Stream(server.url, "open.news") as public,
            stream(server, "cursors,alerts") as unstored,
        ):
            await public.opened()
            await unstored.opened()
            begun = unstored.last_event_id
            assert await publisher.publish("open.news", "e", {}) == (await take(public, 1))[0].id
            assert await publisher.publish("cursors", "e", {"x": 1}) == ""
            ids = await publisher.publish_batch(
                [{"channel": name, "event": "e", "data": {}} for name in ("alerts", "cursors")]
            )
            events = await take(unstored, 1)
            assert unstored.last_event_id == begun
            events += await take(unstored, 2)
            assert [event.id for event in events] == ["", *ids]
            assert [event.channel for event in events] == ["cursors", "alerts", "cursors"]
            assert unstored.last_event_id == ids[0]

    run(test())


def test_a_position_moves_over_what_a_filtered_stream_leaves_out(start_server: Any) -> None:
    server: ServerProcess = start_server(KEEPALIVE__PING_INTERVAL=1)

    async def test() -> None:
        async with (
            Publisher(server.url, server.access_token()) as publisher,
            stream(server, "alerts", types="wanted") as filtered,
        ):
            await filtered.opened()
            left_out = await publisher.publish("alerts", "other", {})
            waiting = asyncio.create_task(anext(filtered))
            await asyncio.to_thread(until, lambda: filtered.last_event_id == left_out, "a ping has moved it")
            wanted = await publisher.publish("alerts", "wanted", {})
            item = await waiting
            assert isinstance(item, Event)
            assert item.id == wanted

    run(test())


def test_a_conflated_channel_is_named_and_begins_with_its_table(server: ServerProcess) -> None:
    async def test() -> None:
        states: list[Connected | Waiting] = []
        async with Publisher(server.url, server.access_token()) as publisher:
            for symbol, price in (("a", 1), ("b", 2), ("a", 3)):
                await publisher.publish("quotes", "quote", {"symbol": symbol, "price": price})
            async with stream(server, "quotes", last=1, rate=50, on_state=states.append) as table:
                assert [event.data["price"] for event in await take(table, 2)] == [2, 3]
            assert isinstance(states[0], Connected)
            assert states[0].conflated == ("quotes",)

    run(test())


def command(server: ServerProcess, *words: str, input: str = "") -> subprocess.CompletedProcess[str]:
    return run_program(*words, "--url", server.url, environment=server.environment, input=input)


@pytest.mark.long
def test_the_commands_publish_a_text_and_listen_from_a_beginning(server: ServerProcess) -> None:
    published = [
        command(server, "publish", "user.command", "fragment", "--text", "<p>1</p>"),
        command(server, "publish", "user.command", "fragment", "--text", "-", input="é\r\n2\n"),
        command(server, "publish", "user.command", "value", "[3]", "--final"),
    ]
    ids = [done.stdout.strip() for done in published]
    assert all(ids), published
    done = command(server, "listen", "user.command", "--from", "earliest")
    assert [(line["id"], line["data"]) for line in lines(done.stdout)] == list(
        zip(ids, ["<p>1</p>", "é\n2\n", [3]], strict=True)
    )
    assert done.stderr.endswith("the channels have ended\n")
    assert done.returncode == 0
    for beginning in (["--last", "1"], ["--since", "-60", "--types", "value"], ["--after", ids[1]]):
        assert [
            line["id"] for line in lines(command(server, "listen", "user.command", *beginning).stdout)
        ] == ids[2:]
    command(server, "publish", "open.end", "e", "{}", "--final")
    public = run_program(
        *("listen", "open.end", "--from", "earliest", "--no-token", "--url", server.url),
        environment={**server.environment, "SSE_APP_STATE_DIR": str(server.state_dir / "none")},
    )
    assert (public.returncode, public.stdout.count("\n")) == (0, 1)
    unstored = command(server, "publish", "cursors", "e", "{}")
    assert (unstored.returncode, unstored.stdout) == (0, "")
    assert "not stored" in unstored.stderr


def test_the_servers_figures_come_without_ids_also_to_the_command_with_the_servers_keys(
    server: ServerProcess,
) -> None:
    token = mint(server.state_dir, TokenKind.STREAM, Grants.of(admin=True))

    async def test() -> None:
        async with Stream(server.url, "sse_app.admin", token) as figures:
            events = await take(figures, 2)
            assert {(event.id, event.type, event.channel) for event in events} == {
                ("", "figures", "sse_app.admin")
            }

    run(test())
    words = ("listen", "sse_app.admin")
    with start(words, environment=server.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
    assert {(line["event"], line["id"], line["data"]["channel"]) for line in printed} == {
        ("figures", None, "sse_app.admin")
    }
    refused = Stream(server.url, "sse_app.admin", server.stream_token("**"))

    async def listen() -> None:
        async with refused:
            with pytest.raises(Forbidden, match=r"sse_app\.admin; that takes the admin grant$"):
                await anext(refused)

    run(listen())


@pytest.mark.slow
def test_who_is_on_a_channel_is_told_by_client_and_command(server: ServerProcess) -> None:
    token = server.stream_token("user.present", subject="ann")
    seen = mint(server.state_dir, TokenKind.STREAM, Grants.of(presence=["**"]))
    ask = mint(server.state_dir, TokenKind.ACCESS, Grants.of(presence=["user.**"]))

    async def test() -> None:
        async with Stream(server.url, "sse_app.presence.user.present", seen) as changes:
            await changes.opened()
            async with Stream(server.url, "user.present", token) as present:
                await present.opened()
                (join,) = await take(changes, 1)
                assert (join.type, join.data["sub"]) == ("join", "ann")
                there = await presence(server.url, "user.present", ask)
                assert [(user.sub, user.streams) for user in there.users] == [("ann", 1)]
                assert (there.count, there.anonymous, there.complete) == (1, 0, True)
                done = await asyncio.to_thread(command, server, "presence", "user.present")
                assert [line["sub"] for line in lines(done.stdout)] == ["ann"]
            assert [event.type for event in await take(changes, 1)] == ["leave"]
        with pytest.raises(Forbidden):
            await presence(server.url, "alerts", ask)

    run(test())
    assert "there is no channel nowhere" in command(server, "presence", "nowhere").stderr
    nobody = command(server, "presence", "user.absent")
    assert (nobody.stdout, nobody.stderr) == ("", "sse-app: no user has a stream on user.absent\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["publish", "alerts", "e", "-", "--token-stdin"], "the token or the data, not both"),
        pytest.param(
            ["publish", "alerts", "e", "<p>"], "--text publishes a text as it is", marks=pytest.mark.slow
        ),
        pytest.param(
            ["listen", "alerts", "--last", "0"], "last must be a number of events", marks=pytest.mark.slow
        ),
        (["listen", "alerts", "--since", "noon"], "--since takes a time such as"),
        pytest.param(
            ["listen", "alerts", "--since", "2026-01-31T12:00:00"],
            "--since takes a time such as",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["listen", "alerts", "--rate", "1000"], "rate must be a number of events", marks=pytest.mark.slow
        ),
    ],
)
def test_what_a_command_cannot_take_is_told_in_one_line(
    server: ServerProcess, words: list[str], told: str
) -> None:
    done = command(server, *words)
    assert done.returncode == 1
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def lines(printed: str) -> Iterator[Any]:
    return map(json.loads, printed.splitlines())
