"""Which failures end a stream of the browser client and which pass, by the table of both clients; in Node.js."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import NamedTuple
from urllib.parse import parse_qs

import pytest

from tests.support.failures import Row, answer, name, rows
from tests.support.node_clients import NodeClients, Note, node_clients
from tests.support.python_client import run
from tests.support.stream_script import Script, answer_json, connected, event, status, stream

pytestmark = [pytest.mark.node, pytest.mark.slow]

STREAM, RENEWAL, TOKEN = "/sse/news", "/renew", "/token"
BRIEF = 8.0
"""The life of a token that is renewed, in seconds. A busy machine needs a part of it to try again."""

STANDS = 3.0
"""Seconds for which a stream stands before it ends. Only one that has stood for a second is replaced at once; a busy
client may see the beginning late."""

Answers = list[list[bytes | float | None]]

GOOD = stream(connected(), event("news", "news", "e-2"), None)
TOKENS: Answers = [status(200, b"one"), status(200, b"two"), status(200, b"three")]
RENEWED = answer_json(200, {"renewed": 1, "expires_in": 600})


class Listener(NamedTuple):
    """A client on a script of its own."""

    script: Script
    clients: NodeClients
    place: int

    async def ends_as(self, row: Row) -> None:
        """See that the client ends as the row says, and that nothing more is asked after it."""
        over = await self.clients.noted(self.place, "close")
        assert over["reason"] == row["reason"]
        asked = len(self.script.asked)
        await asyncio.sleep(0.3)
        assert len(self.script.asked) == asked

    async def goes_on(self) -> None:
        """See that the stream is there, or comes back."""
        assert (await self.clients.noted(self.place, "event"))["data"] == "news"
        assert self.clients.of(self.place, "close") == []

    def reconnects(self) -> list[Note]:
        return self.clients.of(self.place, "reconnect")

    def tokens(self) -> list[str]:
        """Return the tokens with which the stream was asked for."""
        return [parse_qs(request.query)["token"][0] for request in self.script.to(STREAM)]


class Case(NamedTuple):
    """What the server answers to a client, and what must come of it."""

    row: Row
    answers: dict[str, Answers]
    check: Callable[[Listener, Row], Awaitable[None]]
    patience: float = 20
    """Seconds that the client waits for a connection."""


async def token_passes_or_not(listener: Listener, row: Row) -> None:
    if row["then"] == "final":
        return await listener.ends_as(row)
    await listener.goes_on()
    before, after = listener.script.to(TOKEN)[-2:]
    assert after.at - before.at >= row.get("retry_after", 0)


async def renewal_token_passes_or_not(listener: Listener, row: Row) -> None:
    if row["then"] == "final":
        await listener.ends_as(row)
    else:
        await listener.script.came(RENEWAL)
    assert len(listener.script.to(STREAM)) == 1


def test_what_the_token_function_fails_with(built: str) -> None:
    cases: list[Case] = []
    for row in rows("token"):
        failure, check = answer(row), token_passes_or_not
        cases += [
            Case(row, {STREAM: [GOOD], TOKEN: [failure, *TOKENS]}, check),
            Case(row, {STREAM: [stream(connected()), GOOD], TOKEN: [TOKENS[0], failure, TOKENS[1]]}, check),
            Case(
                row,
                {
                    STREAM: [stream(connected(expires_in=BRIEF), None)],
                    RENEWAL: [RENEWED],
                    TOKEN: [TOKENS[0], failure, TOKENS[1]],
                },
                renewal_token_passes_or_not,
            ),
        ]
    run(_each(cases))


async def opening_passes_or_not(listener: Listener, row: Row) -> None:
    if row["then"] == "retry":
        await listener.goes_on()
        before, after = listener.script.to(STREAM)[-2:]
        assert after.at - before.at >= row.get("retry_after", 0)
        return
    await listener.ends_as(row)
    already_open = len(listener.clients.of(listener.place, "open"))
    refused = listener.tokens()[already_open:]
    assert len(refused) == (2 if row["then"] == "fresh, then final" else 1)
    assert len(set(refused)) == len(refused)


async def fresh_token_is_taken(listener: Listener, row: Row) -> None:
    await listener.goes_on()
    assert listener.tokens() == ["one", "two"]
    assert listener.reconnects() == []


def test_what_the_server_answers_to_the_opening_of_a_stream(built: str) -> None:
    cases: list[Case] = []
    for row in rows("opening"):
        again = row["then"] == "fresh, then final"
        refusals = [answer(row)] * (2 if again else 1)
        patience = 0.5 if row.get("what") == "silence" else 20
        for before in ([], [stream(connected())]):
            answers = {STREAM: [*before, *refusals, GOOD], TOKEN: [*TOKENS]}
            cases.append(Case(row, answers, opening_passes_or_not, patience))
        if again:
            answers = {STREAM: [answer(row), GOOD], TOKEN: [*TOKENS]}
            cases.append(Case(row, answers, fresh_token_is_taken))
    run(_each(cases))


async def comes_back(listener: Listener, row: Row) -> None:
    await listener.goes_on()
    assert [note["reason"] for note in listener.reconnects()] == ["lost"]


def test_what_happens_to_an_open_stream(built: str) -> None:
    ends = (connected(), connected() + b"data: half an event")
    run(
        _each(
            [
                Case(row, {STREAM: [stream(end), GOOD], TOKEN: [*TOKENS]}, comes_back)
                for row in rows("open")
                for end in ends
            ]
        )
    )


async def renewal_passes_or_not(listener: Listener, row: Row) -> None:
    script = listener.script
    if row["then"] == "fresh":
        await listener.goes_on()
        assert len(script.to(RENEWAL)) == 1
        assert listener.tokens() == ["one", "two"], "the token that it had just fetched"
        assert [(note["reason"], note["delay"]) for note in listener.reconnects()] == [("renewal", 0)]
        return
    first, again = await script.came(RENEWAL, 2)
    assert again.headers["authorization"] != first.headers["authorization"]
    await asyncio.sleep(0.3)
    assert len(script.to(STREAM)) == 1


def test_what_the_server_answers_to_a_renewal(built: str) -> None:
    run(
        _each(
            [
                Case(
                    row,
                    {
                        STREAM: [stream(connected(expires_in=BRIEF), None), GOOD],
                        RENEWAL: [answer(row), RENEWED],
                        TOKEN: [*TOKENS],
                    },
                    renewal_passes_or_not,
                )
                for row in rows("renewal")
            ]
        )
    )


async def closing_is_heeded(listener: Listener, row: Row) -> None:
    if "reason" in row:
        await listener.ends_as(row)
        assert len(listener.script.to(STREAM)) == (2 if row["then"] == "fresh, then final" else 1)
        return
    await listener.goes_on()
    first, second = listener.script.to(STREAM)
    assert listener.tokens() == ["one", "two"]
    if row["then"] == "wait":
        assert second.at - first.at >= STANDS + row["retry"] / 1000
    else:
        assert [(note["attempt"], note["delay"]) for note in listener.reconnects()] == [(1, 0)]


def test_what_the_server_says_as_it_closes_a_stream(built: str) -> None:
    cases: list[Case] = []
    for row in rows("closing"):
        reason = "whatever" if row["closing"] == "any other reason" else row["closing"]
        farewell = event("closing", {"reason": reason, "retry": row.get("retry")})
        refusals = [status(401)] if row["then"] == "fresh, then final" else []
        streams = [stream(connected(), STANDS, farewell, None), *refusals, GOOD]
        cases.append(Case(row, {STREAM: streams, TOKEN: [*TOKENS]}, closing_is_heeded))
    run(_each(cases))


async def _each(cases: list[Case]) -> None:
    """Run the cases side by side, and fail with those that did not hold."""
    async with AsyncExitStack() as stack:
        scripts = [await stack.enter_async_context(Script(case.answers)) for case in cases]
        given = [
            {
                "url": script.url,
                "text": case.row.get("token") == "text",
                "connectTimeout": case.patience * 1000,
            }
            for script, case in zip(scripts, cases, strict=True)
        ]
        clients = await stack.enter_async_context(node_clients(given))
        checks = [
            case.check(Listener(script, clients, place), case.row)
            for place, (script, case) in enumerate(zip(scripts, cases, strict=True))
        ]
        results = await asyncio.gather(*checks, return_exceptions=True)
        wrong = {
            f"{place} {name(case.row)}": (result, clients.notes[place])
            for place, (case, result) in enumerate(zip(cases, results, strict=True))
            if result is not None
        }
        assert wrong == {}
