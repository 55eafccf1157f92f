"""The examples as their documents start them, in a real Chromium: HTML fragments, and a model's answer."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, Response

from tests.support.browser import PATIENCE
from tests.support.npm import installed_for
from tests.support.server_process import ROOT

pytestmark = pytest.mark.browser

TOKENS = 2000


@contextmanager
def example(name: str, state: Path, *words: str) -> Iterator[tuple[str, str]]:
    """Run an example, and yield its address and the line after it."""
    command = [sys.executable, "-m", f"examples.{name}", "--port", "0", "--state-dir", str(state), *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        address = re.search(r"http://\S+(?=/ )", line)
        assert address, line + process.stdout.read()
        yield address[0], "".join(process.stdout.readline() for _ in range(5)) if name == "htmx" else ""
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page of its own, whose errors fail the test."""
    errors: list[str] = []
    with chromium.new_context() as context:
        context.on("weberror", lambda error: errors.append(str(error.error)))
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        yield page
        assert errors == []


@pytest.mark.long
def test_an_answer_of_2000_tokens_survives_two_reloads_and_then_the_browser_stops_asking(
    page: Page, tmp_path: Path
) -> None:
    with example("tokens", tmp_path / "state", "--tokens", str(TOKENS), "--pause", "0.001") as (url, _):
        asked: list[int] = []

        def note(answer: Response) -> None:
            if "/sse/" in answer.url:
                asked.append(answer.status)

        page.on("response", note)
        shown = "document.querySelectorAll('#answer span').length"
        page.goto(url)
        page.click("#ask")
        for reload in (1, 2):
            page.wait_for_function(f"{shown} > {reload * 200}", polling=20)
            before = page.evaluate(shown)
            page.reload()
            page.wait_for_function(f"{shown} > {before}", polling=20)
        assert page.evaluate(shown) < TOKENS, "it was reloaded in the middle"
        page.wait_for_function("window.source.readyState === EventSource.CLOSED", polling=20)
        assert page.inner_text("#state") == "That is all."
        assert asked == [200, 200, 200, 204]
        channel = page.evaluate("location.hash.slice(1)")
        history = f"{url}/api/v1/sse/{channel}/history"
        after = httpx.get(history).json()["events"][0]["id"].partition("-")[0] + "-0"
        log: list[str] = []
        while len(log) < TOKENS:
            events = httpx.get(history, params={"limit": "1000", "after": after}).json()["events"]
            log += [event["data"] for event in events]
            after = events[-1]["id"]
        tokens = page.eval_on_selector_all("#answer span", "(all) => all.map((one) => one.textContent)")
        assert tokens == log
        assert [int(token.partition(":")[0]) for token in tokens] == list(range(TOKENS))


@pytest.mark.slow
def test_an_example_says_what_is_in_its_way_and_ends_at_ctrl_c_in_the_middle_of_an_answer(
    tmp_path: Path,
) -> None:
    with example("tokens", tmp_path / "state", "--pause", "0.05") as (url, _):
        assert httpx.post(f"{url}/ask").json()["channel"].startswith("answer.")
        command = [sys.executable, "-m", "examples.tokens", "--port", url.rpartition(":")[2]]
        done = subprocess.run(
            [*command, "--state-dir", str(tmp_path / "other")], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "Address already in use (--port takes another one, 0 any free one)" in done.stderr


@pytest.mark.long
@pytest.mark.node
def test_htmx_and_turbo_from_npm_unmodified_show_fragments_also_after_a_reload(
    page: Page, tmp_path: Path
) -> None:
    installed_for(ROOT / "examples/htmx/page")
    state = tmp_path / "state"
    with example("htmx", state) as (url, said):
        page.goto(url)
        for list in ("#htmx-news", "#turbo-news"):
            page.wait_for_selector(f"{list} li:nth-child(2)")
        texts = page.eval_on_selector_all("li", "(all) => all.map((one) => one.innerText)")
        assert any("Trains & <trams>, report" in text for text in texts)
        assert any("Boats & <barges>, report" in text for text in texts)
        page.reload()
        for list in ("#htmx-news", "#turbo-news"):
            page.wait_for_selector(f"{list} li:nth-child(2)")
            first = page.locator(f"{list} li").last.inner_text()
            assert page.locator(f"{list} li", has_text=first).count() == 1
        command = said[said.index("curl") :]
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert '"id"' in done.stdout, done
        page.wait_for_selector("#htmx-news li:text('by hand')")
