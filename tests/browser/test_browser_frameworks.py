"""The React hook and the Svelte store, with the real frameworks and the package as it is built, in a real Chromium."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.browser import (
    CHANNEL,
    Chrome,
    ClientPage,
    Start,
    connections,
    log_of,
    publish,
    publishing,
    wait_for_connections,
)
from tests.support.npm import CLIENT
from tests.support.programs import require
from tests.support.scripted_server import Answer, ScriptedServer
from tests.support.server_process import ROOT, ServerProcess

pytestmark = [pytest.mark.browser, pytest.mark.node]


def bundle(*words: str) -> str:
    """Return a page of ``tests/browser/frameworks`` with all that it imports."""
    program = ROOT / "tests/browser/frameworks/bundle.mjs"
    command = [require("node"), str(program), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def opened(chrome: Chrome, server: ServerProcess, script: str) -> ClientPage:
    """Open a tab that runs a bundle, with a stream token for the user's own channels."""
    tab = chrome.open(server, file="plain.html")
    given = {
        "server": server.url.replace("127.0.0.1", "localhost"),
        "token": server.stream_token(CHANNEL, f"{CHANNEL}.more", "alerts"),
    }
    names = "session = given.token, show = ({ message }) => log.push(message)"
    tab.run(f"given = {json.dumps(given)}, {names}, 0")
    tab.page.add_script_tag(content=script, type="module")
    return tab


@pytest.mark.slow
def test_a_react_component_shows_a_stream_also_in_strict_mode(
    chrome: Chrome, serve: Start, built: str
) -> None:
    server = serve()
    asked: list[str] = []
    chrome.context.on("request", lambda request: asked.append(request.url))
    page = opened(chrome, server, bundle("react.jsx"))
    page.wait("window.sse?.isConnected")
    assert len([url for url in asked if "/api/v1/sse/" in url]) == 1  # though its effects ran twice
    with server.publisher() as publisher:
        ids = publish(publisher, 100)
        page.has(ids[-1])
        assert page.ids() == ids
        page.wait("document.querySelector('p').textContent === 'connected 99'")
        # Callbacks are those of the last rendering: each saw the state that the one before had set.
        (id,) = publish(publisher)
        page.wait(f"log.some((e) => e.id === '{id}' && e.seen > 0)")
        server.kill()
        page.wait("sse.status === 'reconnecting' && !sse.isConnected")
        server.start()
        page.wait("sse.isConnected && sse.connectionCount === 2")
        assert page.run("[sse.error, sse.retryCount, sse.lastEventId]") == [None, 0, id]
    page.run("unmount()")
    wait_for_connections(server, 0)


@pytest.mark.slow
def test_a_react_component_goes_elsewhere_without_a_gap(chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    page = opened(chrome, server, bundle("react.jsx"))
    page.wait("window.sse?.isConnected")
    with publishing(server) as ids:
        for names in ([CHANNEL, f"{CHANNEL}.more"], [CHANNEL, "alerts"], [CHANNEL]):
            page.run(f"window.before = log.length; go('/api/v1/sse', {names})")
            page.wait("log.length > before + 5")
            page.wait("sse.isConnected")
    page.has(ids[-1])
    with server.publisher() as publisher:
        assert page.ids() == log_of(publisher)[-len(page.ids()) :]
    assert connections(server) == 1
    page.run("go(null)")
    wait_for_connections(server, 0)
    page.wait("sse.status === 'idle'")
    page.run(f"go('/api/v1/sse/{CHANNEL}')")
    page.wait("sse.isConnected")
    page.run("sse.disconnect()")
    page.wait("sse.status === 'closed'")
    wait_for_connections(server, 0)
    page.run("sse.connect()")
    page.wait("sse.isConnected")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["svelte", pytest.param("svelte4", marks=pytest.mark.long)])
def test_a_svelte_component_shows_a_stream_while_it_is_there(
    version: str, chrome: Chrome, serve: Start, built: str
) -> None:
    server = serve()
    page = opened(chrome, server, bundle("svelte.js", version))
    page.wait("document.querySelector('p')?.textContent.startsWith('connected')")
    assert connections(server) == 1
    with server.publisher() as publisher:
        ids = publish(publisher, 100)
        page.has(ids[-1])
        assert page.ids() == ids
        page.wait("document.querySelector('p').textContent === 'connected 99'")
        assert page.run("svelte.get(svelte.derived(stream, ({ lastEventId }) => lastEventId))") == ids[-1]
        page.run("window.other = show(); hide(component)")
        (id,) = publish(publisher)
        page.has(id)
        page.run("stream.go('/api/v1/sse', ['user.tester', 'alerts'])")
        (later,) = publish(publisher)
        page.has(later)
        page.run("hide(other)")
        wait_for_connections(server, 0)
        assert page.run("svelte.get(stream).status") == "idle"
        (missed,) = publish(publisher)
        page.run("window.component = show()")
        page.has(missed)
        assert page.ids() == [*ids, id, later, missed]


def test_a_store_with_another_subscriber_waits_as_long_as_the_server_has_asked_for(
    chrome: Chrome, script: ScriptedServer, built: str
) -> None:
    script.answers = [Answer(503, headers={"Retry-After": "1000"})]
    page = chrome.open(script.url, file="plain.html")
    page.run(f"given = {json.dumps({'server': script.url, 'token': 'token'})}, 0")
    page.page.add_script_tag(content=bundle("svelte.js", "svelte"), type="module")
    page.wait("document.querySelector('p')?.textContent.startsWith('reconnecting')")
    assert page.run("svelte.get(stream).status") == "reconnecting"
    page.run("window.other = show()")
    page.wait("document.querySelectorAll('p').length === 2")
    page.page.wait_for_timeout(500)
    assert len(script.streams()) == 1


EXAMPLES = [
    pytest.param("jsx", ["svelte"], id="react"),
    pytest.param("svelte", ["svelte4"], id="svelte 4"),
    pytest.param("svelte", ["svelte"], id="svelte 5"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("language", "words"), EXAMPLES)
def test_the_examples_of_the_readme_run_as_they_stand(
    language: str, words: list[str], chrome: Chrome, serve: Start, built: str, tmp_path: Path
) -> None:
    server = serve()
    text = (CLIENT / "README.md").read_text().replace("http://localhost:8000", server.url)
    (code,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    (tmp_path / f"example.{language}").write_text(code)
    react = """
        import { createElement } from "react";
        import { createRoot } from "react-dom/client";
        import { Alerts } from "./example.jsx";
        createRoot(document.body.appendChild(document.createElement("div"))).render(createElement(Alerts));
    """
    svelte = """
        import * as svelte from "svelte";
        import Alerts from "./example.svelte";
        const target = document.body;
        svelte.mount ? svelte.mount(Alerts, { target }) : new Alerts({ target });
    """
    (tmp_path / "page.js").write_text(react if language == "jsx" else svelte)
    page = opened(chrome, server, bundle(str(tmp_path / "page.js"), *words))
    wait_for_connections(server, 1)
    with server.publisher() as publisher:
        publisher.post("/api/v1/sse/alerts", json={"event": "risk_alert", "data": {"message": "high"}})
    page.wait("document.querySelector('p').textContent === 'high' && log.join() === 'high'")


@pytest.mark.slow
def test_the_hook_and_the_composables_render_on_a_server(built: str) -> None:
    """In Node.js, without a window, and with its EventSource or without: nothing is opened there."""
    script = """
        import { createElement } from "react";
        import { renderToString } from "react-dom/server";
        import { createSSRApp, h } from "vue";
        import { renderToString as renderVue } from "vue/server-renderer";
        import * as react from "@sse-app/client/react";
        import * as vue from "@sse-app/client/vue";
        import * as svelte from "@sse-app/client/svelte";

        globalThis.fetch = () => { throw new Error("opened"); };
        if (globalThis.EventSource) globalThis.EventSource = class { constructor() { throw new Error("opened"); } };
        const settings = { baseURL: "http://localhost:1", token: () => { throw new Error("asked"); } };
        for (const { configureSSE } of [react, vue, svelte]) configureSSE(settings);
        const url = "/api/v1/sse/alerts";
        console.log(renderToString(createElement(() => createElement("p", null, react.useSSE(url).status))));
        const setup = () => {
          const sse = vue.useSSE(url);
          sse.connect();
          const views = ["Dashboard", "Alerts", "Training", "Backtest"].map((name) => vue[`use${name}SSE`]());
          const { alerts } = vue.useRiskAlerts();
          const connected = views.map((view) => view.isConnected.value);
          return () => h("p", `${sse.status.value} ${connected} ${alerts.value.length}`);
        };
        console.log(await renderVue(createSSRApp({ setup })));
        svelte.sseStore(url).subscribe(({ status }) => console.log(status))();
    """
    node, flag = require("node"), "--experimental-eventsource"  # which Node.js 18 has not
    has_flag = subprocess.run([node, flag, "--version"], capture_output=True, check=False).returncode == 0
    for options in ([], [flag]) if has_flag else ([],):
        command = [node, *options, "--input-type=module", "--eval", script]
        done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, check=False, timeout=60)
        printed = done.stdout.splitlines()
        assert printed == ["<p>idle</p>", "<p>idle false,false,false,false 0</p>", "idle"], done.stderr
