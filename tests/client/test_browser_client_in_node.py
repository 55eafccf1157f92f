"""The browser client without a browser, in Node.js: rendering on a server, and streams of programs."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest

from tests.support.browser import CHANNEL, Start, publish, wait_for_connections
from tests.support.node_clients import node_clients
from tests.support.npm import CLIENT
from tests.support.programs import require
from tests.support.python_client import run
from tests.support.stream_script import Script, connected, event, status, stream

pytestmark = pytest.mark.node


def node(script: str, *given: str) -> list[str]:
    """Run a script on the package as it is built until it ends by itself; return the lines that it prints."""
    command = [require("node"), "--input-type=module", "--eval", script, *given]
    done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_page_can_be_rendered_where_there_is_no_page(built: str) -> None:
    printed = node("""
        const absent = ["window", "document", "location", "EventSource", "sessionStorage"];
        for (const name of absent) delete globalThis[name];
        globalThis.fetch = () => console.log("asked");
        const { SSEClient } = await import("@sse-app/client");
        const options = { autoConnect: false, persist: true, token: () => console.log("asked for a token") };
        const client = new SSEClient("/api/v1/sse/alerts", options);
        client.addEventListener("risk_alert", () => {});
        client.reset();
        client.close();
        console.log(client.readyState, client.withCredentials);
        for (const act of [() => client.connect(), () => client.restart(), () => new SSEClient("/sse/a")]) {
          try { act(); } catch ({ name, message }) { console.log(`${name}: ${message}`); }
        }
        console.log(client.readyState);
    """)
    refused = "is no URL; outside of a page it must be absolute"
    assert printed == [
        "2 false",
        *[f"SyntaxError: /api/v1/sse {refused}"] * 2,
        f"SyntaxError: /sse {refused}",
        "2",
    ]


@pytest.mark.slow
def test_a_program_has_its_events_over_restarts_and_renewals_and_then_ends(
    start_server: Start, built: str
) -> None:
    """It leaves no timer and no connection, so the program ends by itself."""
    server = start_server(STREAM__RETRY=200, AUTH__STREAM_LIFETIME=4, KEEPALIVE__PING_INTERVAL=1)
    script = """
        import { SSEClient } from "@sse-app/client";
        const [url, channel, access] = process.argv.slice(1);
        const say = (kind) => (detail) => console.log(JSON.stringify({ kind, ...detail }));
        const client = new SSEClient(`${url}/api/v1/sse`, {
          channels: channel,
          async token(channels) {
            console.log(JSON.stringify({ kind: "token" }));
            const answer = await fetch(`${url}/api/v1/auth/stream-token`, {
              method: "POST",
              headers: { Authorization: `Bearer ${access}` },
              body: JSON.stringify({ channels }),
            });
            return (await answer.json()).stream_token;
          },
          onOpen: say("open"), onReset: say("reset"), onReconnect: say("reconnect"), onClose: say("close"),
          onEvent(event) {
            say("event")(event);
            if (event.type === "end") client.close();
          },
        });
    """
    command = [require("node"), "--input-type=module", "--eval", script]
    given = [server.url, CHANNEL, server.access_token()]
    with subprocess.Popen([*command, *given], cwd=CLIENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        notes = (json.loads(line) for line in process.stdout)
        try:
            assert [next(notes)["kind"] for _ in range(2)] == ["token", "open"]
            assert next(notes)["kind"] == "token", "it is renewed on the same connection"
            with server.publisher() as publisher:
                ids = publish(publisher, 3)
                server.kill()
                server.start()
                ids += publish(publisher, 3, event="unheard")
                (last,) = publish(publisher, event="end")
            told = list(notes)
        finally:
            process.kill()
    assert process.returncode == 0, "it ended by itself"
    assert [note["id"] for note in told if note["kind"] == "event"] == [*ids, last]
    assert [note["recovered"] for note in told if note["kind"] == "open"] == [True]
    assert told[-1]["reason"] == "closed"
    wait_for_connections(server, 0)


def test_the_package_has_what_its_entries_lead_to(built: str) -> None:
    entries = json.loads((CLIENT / "package.json").read_text())["exports"]
    assert entries.keys() == {".", "./session", "./vue", "./react", "./svelte", "./testing"}
    files = [path for entry in entries.values() for path in entry.values()]
    assert [path for path in files if not (CLIENT / path).is_file()] == []


def test_the_package_has_the_source_of_each_of_its_files(built: str) -> None:
    """So that what a debugger shows can be read."""
    files = sorted((CLIENT / "dist").glob("*.js"))
    assert files
    for file in files:
        mapped = json.loads(file.with_suffix(".js.map").read_text())
        sources = [(file.parent / name).resolve() for name in mapped["sources"]]
        assert [source.read_text() for source in sources] == mapped["sourcesContent"], file
        assert file.read_text().rstrip().endswith(f"//# sourceMappingURL={file.name}.map")


async def _slow_event(pause: float, pieces: int) -> None:
    event_in_pieces: list[bytes | float | None] = [b"event: long\ndata: "]
    for _ in range(pieces):
        event_in_pieces += [pause, b"x"]
    answers = {
        "/sse/news": [stream(connected(), *event_in_pieces, b"\n\n", None)],
        "/token": [status(200, b"one")],
    }
    async with Script(answers) as script:
        options = {"url": script.url, "text": False, "pingInterval": 1500}
        async with node_clients([options]) as clients:
            told = await clients.noted(0, "event")
            assert told["text"] == "x" * pieces
            assert clients.of(0, "reconnect") == []


def test_an_event_that_takes_long_to_arrive_is_no_silence(built: str) -> None:
    """Over a slow line it takes more than the 2.25 ping intervals after which a silent stream is given up."""
    run(_slow_event(pause=0.5, pieces=8))


async def _slow_pings(pings: int) -> None:
    ping: list[bytes | float | None] = [1.5, event("ping", {})]
    answers = {
        "/sse/news": [stream(connected(), *ping * pings, event("tick", {}, "e-2"), None)],
        "/token": [status(200, b"one")],
    }
    async with Script(answers) as script:
        options = {"url": script.url, "text": False, "pingInterval": 200}
        async with node_clients([options]) as clients:
            await clients.noted(0, "event")
            assert {note["reason"] for note in clients.of(0, "reconnect")} == {"stalled"}


def test_pings_that_come_much_more_slowly_than_was_believed_are_waited_for_in_the_end(built: str) -> None:
    """Else a stream on which nothing happens would be opened anew for ever."""
    run(_slow_pings(pings=3))


async def _side_by_side() -> None:
    answers = {
        "/sse/news": [stream(connected(), event("tick", {"n": 1}, "e-2"), None)],
        "/token": [status(200, b"one")],
    }
    async with Script(answers) as script:
        given = [{"url": script.url, "text": text, "share": True} for text in (True, False, False)]
        async with node_clients(given) as clients:
            await asyncio.gather(*(clients.noted(place, "event") for place in range(3)))
        assert len(script.to("/sse/news")) == 3


def test_clients_of_one_program_do_not_share_a_connection(built: str) -> None:
    """Node.js has locks and channels too, but a program acts for many users."""
    run(_side_by_side())
