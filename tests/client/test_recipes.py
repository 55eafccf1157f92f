"""What docs/recipes.md shows runs as it stands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sse_app.client.testing import FakeServer
from tests.support.environments import environment_with
from tests.support.ports import reserve_port
from tests.support.programs import require
from tests.support.server_process import ROOT, ServerProcess, running
from tests.support.sse_reader import EventStreamReader
from tests.support.waiting import until

PASSWORD = "correct horse battery"
PAGE = (ROOT / "docs/recipes.md").read_text()


def recipe(heading: str, server: ServerProcess | None = None) -> str:
    """Return the code below a heading, for this server."""
    section = re.split(r"\n#+ ", PAGE.partition(f"# {heading}\n")[2])[0]
    (code,) = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    return str(code) if server is None else str(code).replace("http://localhost:8000", server.url)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the user whom the page speaks of."""
    with running(state_dir=tmp_path_factory.mktemp("recipes") / "state") as server:
        server.add_user("backend", PASSWORD, publish="alerts,training")
        yield server


def run(command: list[str], folder: Path, **variables: str) -> str:
    """Run a program to its end, and return what it prints."""
    environment = os.environ | variables
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def published(server: ServerProcess, sender: str) -> list[dict[str, Any]]:
    """Return the alerts that a sender has published."""
    with server.publisher() as http:
        events = http.get("/api/v1/sse/alerts/history").json()["events"]
    return [event for event in events if event["data"].get("from") == sender]


@pytest.mark.slow
def test_curl_publishes_once_however_often_it_is_sent(served: ServerProcess, tmp_path: Path) -> None:
    for _ in range(2):
        run(["bash", "-ec", recipe("Publish with curl", served)], tmp_path)
    (event,) = published(served, "curl")
    assert (event["event"], event["data"]["severity"]) == ("risk_alert", "low")


@pytest.mark.slow
@pytest.mark.node
def test_node_publishes(served: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "publish.mjs").write_text(recipe("Publish from Node.js", served))
    run([require("node"), "publish.mjs"], tmp_path)
    assert len(published(served, "node")) == 1


@pytest.mark.node
def test_node_publishes_again_when_a_busy_server_wants_it(tmp_path: Path) -> None:
    with FakeServer() as server:
        server.refuse("publish", 503, "busy", retry_after=2)
        code = recipe("Publish from Node.js").replace("http://localhost:8000", server.url)
        (tmp_path / "publish.mjs").write_text(code)
        begun = time.monotonic()
        run([require("node"), "publish.mjs"], tmp_path)
        assert time.monotonic() - begun > 2
        assert server.asked["publish"] == 2
        assert len(server.published) == 1


@contextmanager
def program(command: list[str], folder: Path, url: str) -> Iterator[httpx.Client]:
    """Run an application until it answers, and end it as its operator would; it has to end well."""
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                return bool(httpx.get(url).status_code)
            except httpx.TransportError:
                return False

        try:
            until(answers, f"{url} answers")
            with httpx.Client(base_url=url, timeout=60) as http:
                yield http
            process.terminate()
            assert process.wait(60) in (0, -15), (folder / "log").read_text()
            assert "Traceback" not in (folder / "log").read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def uvicorn(port: int, loop: str = "auto") -> list[str]:
    """Return the command that serves app.py on a port."""
    options = ("--port", str(port), "--loop", loop)
    return [str(environment_with("frameworks") / "python"), "-m", "uvicorn", "app:app", *options]


@pytest.mark.long
def test_fastapi_publishes(request: pytest.FixtureRequest, served: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(recipe("Publish from FastAPI", served))
    port = reserve_port(request.node)
    with program(uvicorn(port), tmp_path, f"http://127.0.0.1:{port}") as http:
        answer = http.post("/orders", json={"from": "fastapi"})
    assert [event["id"] for event in published(served, "fastapi")] == [answer.json()["event"]]


DJANGO = """
import sys
from wsgiref.simple_server import make_server

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.urls import path

settings.configure(ROOT_URLCONF="__main__", SECRET_KEY="x", ALLOWED_HOSTS=["127.0.0.1"])
application = get_wsgi_application()
import views

urlpatterns = [path("orders", views.order)]
make_server("127.0.0.1", int(sys.argv[1]), application).serve_forever()
"""


@pytest.mark.slow
def test_django_publishes(request: pytest.FixtureRequest, served: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "views.py").write_text(recipe("Publish from Django", served))
    (tmp_path / "serve.py").write_text(DJANGO)
    port = reserve_port(request.node)
    python = str(environment_with("frameworks") / "python")
    with program(
        [python, str(tmp_path / "serve.py"), str(port)], tmp_path, f"http://127.0.0.1:{port}"
    ) as http:
        answers = [http.post("/orders", data={"from": "django"}) for _ in range(2)]
    assert [event["id"] for event in published(served, "django")] == [
        answer.json()["event"] for answer in answers
    ]


@pytest.mark.slow
def test_flask_publishes(request: pytest.FixtureRequest, served: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(recipe("Publish from Flask", served))
    port = reserve_port(request.node)
    command = [str(environment_with("frameworks") / "python"), "-m", "flask", "run", "--port", str(port)]
    with program(command, tmp_path, f"http://127.0.0.1:{port}") as http:
        answer = http.post("/orders", json={"from": "flask"})
    assert [event["id"] for event in published(served, "flask")] == [answer.json()["event"]]


BROKER = """
from tasks import app, train

app.conf.broker_url = "filesystem://"
app.conf.broker_transport_options = {"data_folder_in": "queue", "data_folder_out": "queue"}
"""


@pytest.mark.long
@pytest.mark.slow
def test_celery_publishes_from_the_processes_of_its_worker(served: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(recipe("Publish from Celery", served))
    (tmp_path / "main.py").write_text(BROKER)
    (tmp_path / "queue").mkdir()
    python = str(environment_with("frameworks") / "python")
    run([python, "-c", "from main import train\nfor _ in range(2): train.delay(3)"], tmp_path)
    alone = ("--without-mingle", "--without-gossip", "--without-heartbeat")
    options = ("--concurrency", "2", "--loglevel", "WARNING", *alone)
    worker = [python, "-m", "celery", "--app", "main", "worker", *options]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(worker, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
        try:
            until(lambda: len(progresses(served)) == 6, "all is published")
            process.terminate()
            assert process.wait(60) == 0, (tmp_path / "log").read_text()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert sorted(progresses(served)) == sorted([33, 66, 100] * 2)


def progresses(server: ServerProcess) -> list[int]:
    """Return what trainings have published."""
    with server.publisher() as http:
        events = http.get("/api/v1/sse/training/history").json()["events"]
    return [event["data"]["progress"] for event in events]


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=pytest.mark.long)])
def test_the_server_runs_beside_fastapi_in_one_process(
    loop: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    port, streams = reserve_port(request.node), reserve_port(request.node)
    code = recipe("The server beside FastAPI, in one process")
    (tmp_path / "app.py").write_text(code.replace("8000", str(streams)).replace("8001", str(port)))
    events = EventStreamReader()
    heard: list[Any] = []
    with ExitStack() as open_streams:
        with program(uvicorn(port, loop), tmp_path, f"http://127.0.0.1:{port}") as http:
            token = http.get("/stream-token").json()["stream_token"]
            url = f"http://127.0.0.1:{streams}/api/v1/sse/alerts?token={token}"
            origin = {"Origin": f"http://localhost:{port}"}
            stream = open_streams.enter_context(httpx.stream("GET", url, headers=origin))
            assert stream.headers["Access-Control-Allow-Origin"] == origin["Origin"]
            pieces = stream.iter_bytes()
            while not heard:
                heard += events.feed(next(pieces))
            id = http.post("/orders", json={"from": "beside"}).json()["event"]
        for piece in pieces:
            heard += events.feed(piece)
    assert [event.type for event in heard] == ["connected", "risk_alert", "closing"]
    assert heard[1].id == id


@pytest.mark.slow
def test_the_tokens_of_a_backend_open_streams_and_nothing_else(served: ServerProcess, tmp_path: Path) -> None:
    use_tokens_signed_by(served, tmp_path, "With PyJWT", [sys.executable, "-c"])


@pytest.mark.slow
@pytest.mark.node
def test_the_tokens_of_a_backend_in_node_do(served: ServerProcess, tmp_path: Path) -> None:
    use_tokens_signed_by(served, tmp_path, "In Node.js", [require("node"), "--input-type=module", "--eval"])


@pytest.mark.long
def test_the_tokens_of_a_backend_in_go_do(served: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(recipe("In Go"))
    run([require("go"), "build", "-o", "sign", "main.go"], tmp_path, GOCACHE=str(tmp_path / "cache"))
    use_tokens_signed_by(served, tmp_path, "", ["./sign"])


def use_tokens_signed_by(server: ServerProcess, folder: Path, heading: str, command: list[str]) -> None:
    """Make a key as the page says, sign tokens with a program of it, and use them."""
    keys = server.state_dir / "keys"
    with_key = recipe("Sign stream tokens in your own backend").replace("var/keys", str(keys))
    run(["sh", "-ec", f"{require('openssl')} version; {with_key}"], folder)
    program = [*command, recipe(heading)] if heading else command
    first, second = (run(program, folder) for _ in range(2))
    assert first != second
    assert server.command("check-token", input=first).startswith(
        "valid: this server takes it\nkind: stream token"
    )
    url = f"{server.url}/api/v1/sse/alerts"
    with httpx.stream("GET", url, params={"token": first, "client_id": "c"}) as stream:
        assert stream.status_code == 200, "the running server has taken the key up"
        renewed = httpx.post(
            f"{server.url}/api/v1/sse/connections/c/renew", headers={"Authorization": f"Bearer {second}"}
        )
        assert renewed.json()["renewed"] == 1
    headers = {"Authorization": f"Bearer {first}"}
    assert httpx.post(url, headers=headers, json={"event": "e", "data": {}}).status_code == 401
    assert httpx.get(f"{server.url}/api/v1/sse/dashboard", params={"token": first}).status_code == 403
    server.command("keys", "remove", "backend")
    until(lambda: status_of(url, second) == 401, "what it has signed is refused")


def status_of(url: str, token: str) -> int:
    """Return what a stream is answered with, and leave it."""
    with httpx.stream("GET", url, params={"token": token}) as stream:
        return stream.status_code
