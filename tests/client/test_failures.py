"""Which failures end a stream of the Python client and which pass, by the table of both clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest

from sse_app import client
from sse_app.client import Connected, Event, Refused, Stream, Waiting
from tests.support.failures import FAILURES, Row, answer, name, rows, table
from tests.support.python_client import run
from tests.support.server_process import ROOT
from tests.support.stream_script import Script, answer_json, connected, event, status, stream

STREAM, RENEWAL, TOKEN = "/sse/news", "/renew", "/token"
BRIEF = 8.0
"""The life of a token that is renewed, in seconds."""

STANDS = 3.0
"""Seconds for which a stream stands before it ends. Only one that has stood for a second is replaced at once; a busy
client may see the beginning late."""

QUICK = client.Backoff(0.02, 0.1)


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients renew early in the life of a token: a busy machine needs much of it to try again."""
    monkeypatch.setattr("sse_app.client.renewal.EARLIEST", 0.3)
    monkeypatch.setattr("sse_app.client.renewal.LATEST", 0.35)


class Listener:
    """A stream on a script, and what it tells."""

    def __init__(self, script: Script, text: bool = False, open_timeout: float = 20.0) -> None:
        self.script = script
        self.states: list[Connected | Waiting] = []
        token = "text" if text else self.token
        self.stream = Stream(
            script.url, "news", token, backoff=QUICK, open_timeout=open_timeout, on_state=self.states.append
        )

    async def token(self) -> str:
        """Fetch a token as an application does that uses httpx."""
        async with httpx.AsyncClient(base_url=self.script.url) as http:
            answer = await http.get(TOKEN)
        if answer.status_code == 418:
            raise ZeroDivisionError("a mistake in the function")
        return answer.raise_for_status().text

    async def ends_as(self, row: Row) -> None:
        """See that the iteration ends as the row says, and that nothing more is asked after it."""
        if " " in row["python"]:
            assert [item async for item in self.stream if not isinstance(item, Event)] == []
        else:
            with pytest.raises(getattr(client, row["python"])) as raised:
                await anext(self.stream)
            if row["reason"].startswith("status "):
                assert isinstance(raised.value, Refused)
                assert raised.value.status == int(row["reason"].removeprefix("status "))
            else:
                assert row["reason"] in (*raised.value.args[0].split(), "token"), raised.value
        asked = len(self.script.asked)
        await asyncio.sleep(0.2)
        assert len(self.script.asked) == asked

    async def goes_on(self) -> None:
        """See that the stream is there, or comes back."""
        item = await anext(self.stream)
        assert isinstance(item, Event), item
        assert item.data == "news"


NEWS = event("news", "news", "e-2")
GOOD = stream(connected(), NEWS, None)


async def at_the_first_connection(row: Row) -> None:
    tokens = [answer(row) if row.get("what") != "any other error" else status(418), status(200, b"one")]
    async with Script({STREAM: [GOOD], TOKEN: tokens}) as script:
        listener = Listener(script)
        async with listener.stream:
            if row["then"] == "final":
                await listener.ends_as(row)
                assert script.to(STREAM) == []
                return
            await listener.goes_on()
            first, second = script.to(TOKEN)
            assert second.at - first.at >= row.get("retry_after", 0)


async def at_a_reconnect(row: Row) -> None:
    failure = answer(row) if row.get("what") != "any other error" else status(418)
    tokens = [status(200, b"one"), failure, status(200, b"two")]
    async with Script({STREAM: [stream(connected()), GOOD], TOKEN: tokens}) as script:
        listener = Listener(script)
        async with listener.stream:
            if row["then"] == "final":
                await listener.ends_as(row)
                assert len(script.to(STREAM)) == 1
                return
            await listener.goes_on()
            _, second, third = script.to(TOKEN)
            assert third.at - second.at >= row.get("retry_after", 0)


async def at_a_renewal(row: Row) -> None:
    failure = answer(row) if row.get("what") != "any other error" else status(418)
    tokens = [status(200, b"one"), failure, status(200, b"two")]
    renewed = answer_json(200, {"renewed": 1, "expires_in": 600})
    renewals = stream(connected(expires_in=BRIEF), None)
    async with Script({STREAM: [renewals], RENEWAL: [renewed], TOKEN: tokens}) as script:
        listener = Listener(script)
        async with listener.stream:
            if row["then"] == "final":
                await listener.ends_as(row)
            elif "retry_after" in row:  # then the token may not live long enough
                await script.came(TOKEN, 2)
            else:
                await script.came(RENEWAL)
            assert len(script.to(STREAM)) == 1


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(at_the_first_connection, marks=pytest.mark.slow),
        at_a_reconnect,
        pytest.param(at_a_renewal, marks=pytest.mark.slow),
    ],
)
def test_what_the_token_function_fails_with(moment: Callable[[Row], Awaitable[None]]) -> None:
    run(_each(moment, rows("token")))


async def while_opening(row: Row) -> None:
    text = row.get("token") == "text"
    patience = 0.5 if row.get("what") == "silence" else 20.0
    tokens = [status(200, b"one"), status(200, b"two"), status(200, b"three")]
    answers = [
        stream(connected()),
        answer(row),
        *([answer(row)] if row["then"] == "fresh, then final" else []),
        GOOD,
    ]
    for already_open in (False, True):
        async with Script({STREAM: answers[not already_open :], TOKEN: [*tokens]}) as script:
            listener = Listener(script, text, patience)
            async with listener.stream:
                if row["then"] == "retry":
                    await listener.goes_on()
                    before, after = script.to(STREAM)[-2:]
                    assert after.at - before.at >= row.get("retry_after", 0)
                    continue
                await listener.ends_as(row)
                refused = script.to(STREAM)[already_open:]
                assert len(refused) == (2 if row["then"] == "fresh, then final" else 1)
                assert len({request.headers["authorization"] for request in refused}) == len(refused)
        if row["then"] == "fresh, then final":  # and where the fresh one is taken, it goes on
            async with Script({STREAM: [answer(row), GOOD], TOKEN: [*tokens]}) as script:
                listener = Listener(script)
                async with listener.stream:
                    await listener.goes_on()
                    assert [type(state) for state in listener.states] == [Connected]


@pytest.mark.slow
def test_what_the_server_answers_to_the_opening_of_a_stream() -> None:
    run(_each(while_opening, rows("opening")))


async def while_open(row: Row) -> None:
    assert row == {"where": "open", "what": "the connection is lost", "then": "retry"}
    for end in (connected(), connected() + b"data: half an event"):
        async with Script({STREAM: [stream(end), GOOD], TOKEN: [status(200, b"one")]}) as script:
            listener = Listener(script)
            async with listener.stream:
                await listener.goes_on()


def test_what_happens_to_an_open_stream() -> None:
    run(_each(while_open, rows("open")))


async def while_renewing(row: Row) -> None:
    tokens = [status(200, b"one"), status(200, b"two"), status(200, b"three")]
    renewed = answer_json(200, {"renewed": 1, "expires_in": 600})
    streams = [stream(connected(expires_in=BRIEF), None), GOOD]
    async with Script({STREAM: streams, RENEWAL: [answer(row), renewed], TOKEN: tokens}) as script:
        listener = Listener(script)
        async with listener.stream:
            if row["then"] == "fresh":
                await listener.goes_on()
                assert len(script.to(RENEWAL)) == 1
                first, second = script.to(STREAM)
                assert second.headers["authorization"] != first.headers["authorization"]
                assert [state.attempt for state in listener.states if isinstance(state, Waiting)] == [0]
                return
            _, again = await script.came(RENEWAL, 2)
            assert again.headers["authorization"] != script.to(RENEWAL)[0].headers["authorization"]
            await asyncio.sleep(0.2)
            assert len(script.to(STREAM)) == 1


@pytest.mark.usefixtures("early")
def test_what_the_server_answers_to_a_renewal() -> None:
    run(_each(while_renewing, rows("renewal")))


async def while_closing(row: Row) -> None:
    text = row.get("token") == "text"
    reason = "whatever" if row["closing"] == "any other reason" else row["closing"]
    farewell = event("closing", {"reason": reason, "retry": row.get("retry")})
    opened = stream(connected(), STANDS, farewell, None)
    tokens = [status(200, b"one"), status(200, b"two"), status(200, b"three")]
    streams = [opened, *([status(401)] if row["then"] == "fresh, then final" else []), GOOD]
    async with Script({STREAM: streams, TOKEN: [*tokens]}) as script:
        listener = Listener(script, text)
        async with listener.stream:
            if "reason" in row:
                await listener.ends_as(row)
                assert len(script.to(STREAM)) == (2 if row["then"] == "fresh, then final" else 1)
                return
            await listener.goes_on()
            first, second = script.to(STREAM)
            assert second.headers["authorization"] != first.headers["authorization"]
            (waiting,) = (state for state in listener.states if isinstance(state, Waiting))
            if row["then"] == "wait":
                assert second.at - first.at >= STANDS + row["retry"] / 1000
            else:
                assert (waiting.attempt, waiting.delay) == (0, 0)


def test_what_the_server_says_as_it_closes_a_stream() -> None:
    run(_each(while_closing, rows("closing")))


async def _each(check: Callable[[Row], Awaitable[None]], all_rows: list[Row]) -> None:
    """Check the rows side by side, and fail with those that did not hold."""
    results = await asyncio.gather(*map(check, all_rows), return_exceptions=True)
    wrong = {name(row): result for row, result in zip(all_rows, results, strict=True) if result is not None}
    assert wrong == {}


def test_each_failure_is_of_a_kind_that_is_tested() -> None:
    assert {row["where"] for row in FAILURES} == {"token", "opening", "open", "renewal", "closing"}


def test_the_documents_show_the_table_of_failures() -> None:
    assert f"\n{table()}\n" in (ROOT / "docs/clients.md").read_text(), table()
