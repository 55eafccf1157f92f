"""The mistakes of a first day: each answer says what to do instead, and holds no secret."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tornado import web
from tornado.ioloop import IOLoop

from sse_app import InvalidInput, NotStarted, Settings, SSEApp
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.handlers.site.pages import STATIC
from tests.support.server_process import ServerProcess, running

PASSWORD = "correct horse battery"
EVENT = {"event": "e", "data": {}}


class Newcomer:
    """A user with the tokens of a login, and a connection to a real server."""

    def __init__(self, server: ServerProcess) -> None:
        self.anything = server.access_token()
        self.http = httpx.Client(base_url=server.url, timeout=60)
        login = {"username": "ann", "password": PASSWORD, "cookie": False}
        tokens = self.http.post("/api/v1/auth/login", json=login).json()
        self.access, self.stream, self.refresh = (
            tokens[f"{kind}_token"] for kind in ("access", "stream", "refresh")
        )

    def get(self, path: str, header: str | None = None, **query: str) -> httpx.Response:
        """Ask for a path; a stream that opens is left at once."""
        headers = {} if header is None else {"Authorization": header}
        with self.http.stream("GET", path, params=query or None, headers=headers) as answer:
            if answer.status_code != 200:
                answer.read()
            return answer

    def publish(
        self, path: str = "/api/v1/sse/alerts", header: str | None = None, **body: Any
    ) -> httpx.Response:
        """Publish with an access token, or with another Authorization header."""
        headers = {"Authorization": f"Bearer {self.access}" if header is None else header}
        return self.http.post(path, headers=headers | body.pop("headers", {}), **body)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    with running(state_dir=tmp_path_factory.mktemp("mistakes") / "state") as server:
        server.add_user("ann", PASSWORD, subscribe="dashboard,alerts", publish="alerts")
        newcomer = Newcomer(server)
        yield newcomer
        newcomer.http.close()


FORM = {"Content-Type": "application/x-www-form-urlencoded"}
TEXT = {"Content-Type": "text/plain"}
ALERTS = "/api/v1/sse/alerts"
HISTORY = f"{ALERTS}/history"
LOGIN = "/api/v1/auth/login"
Ask = Callable[[Newcomer], httpx.Response]

TOKENS: dict[str, tuple[Ask, int, str]] = {
    "a stream token to publish": (
        lambda n: n.publish(header=f"Bearer {n.stream}", json=EVENT),
        401,
        "this is a stream token, which only opens streams; all else takes the access_token of the login",
    ),
    "a stream token for the history": (
        lambda n: n.get(HISTORY, f"Bearer {n.stream}"),
        401,
        "access_token of",
    ),
    "an access token for a stream": (
        lambda n: n.get(ALERTS, token=n.access),
        401,
        "this is an access token; a stream takes the stream_token of the login",
    ),
    "an access token in the header of a stream": (
        lambda n: n.get(ALERTS, f"Bearer {n.access}"),
        401,
        "a stream takes the stream_token",
    ),
    "an access token to renew a stream": (
        lambda n: n.publish("/api/v1/sse/connections/x/renew"),
        401,
        "a stream takes the stream_token",
    ),
    "a refresh token for a stream": (
        lambda n: n.get(ALERTS, token=n.refresh),
        401,
        "a refresh token is none",
    ),
    "no token to publish": (lambda n: n.http.post(ALERTS, json=EVENT), 401, "Bearer TOKEN"),
    "no token to renew": (
        lambda n: n.http.post("/api/v1/sse/connections/x/renew"),
        401,
        "the stream_token of the login",
    ),
    "the token in the query to publish": (
        lambda n: n.http.post(ALERTS, json=EVENT, params={"token": n.access}),
        401,
        "in the Authorization header, not in the query",
    ),
    "no token for a stream": (lambda n: n.get(ALERTS), 401, "?token=…"),
    "an empty token": (lambda n: n.get(ALERTS, token=""), 401, "the token is empty"),
    "a variable without a value": (lambda n: n.get(ALERTS, token="undefined"), 401, "has no value yet"),
    "a promise": (lambda n: n.get(ALERTS, token="[object Promise]"), 401, "has no value yet"),
    "None in the header": (lambda n: n.publish(header="Bearer None", json=EVENT), 401, "has no value yet"),
    "quotes": (lambda n: n.get(ALERTS, token=f'"{n.stream}"'), 401, "quotes around the token"),
    "quotes in the header": (
        lambda n: n.publish(header=f'Bearer "{n.access}"', json=EVENT),
        401,
        "quotes around the token",
    ),
    "a line break": (
        lambda n: n.get(ALERTS, token=f"{n.stream}\n"),
        401,
        "a space or line break in the token",
    ),
    "a space in the header": (
        lambda n: n.publish(header=f"Bearer {n.access[:9]} {n.access[9:]}", json=EVENT),
        401,
        "a space or line break in the token",
    ),
    "Bearer in the query": (lambda n: n.get(ALERTS, token=f"Bearer {n.stream}"), 401, "begins with Bearer"),
    "Bearer twice": (
        lambda n: n.publish(header=f"Bearer Bearer {n.access}", json=EVENT),
        401,
        "the token begins with Bearer",
    ),
    "Token": (lambda n: n.publish(header=f"Token {n.access}", json=EVENT), 401, "Bearer TOKEN; not Token"),
    "Basic": (lambda n: n.publish(header="Basic YW5uOng=", json=EVENT), 401, "Bearer TOKEN; not Basic"),
    "the token alone": (lambda n: n.publish(header=n.access, json=EVENT), 401, "the word Bearer is missing"),
    "a colon": (lambda n: n.publish(header=f"Bearer: {n.access}", json=EVENT), 401, "without a colon"),
    "a password in the header": (
        lambda n: n.publish(header=f"ann:{PASSWORD}", json=EVENT),
        401,
        "the word Bearer is missing",
    ),
}

BODIES: dict[str, tuple[Ask, int, str]] = {
    "an unknown member": (
        lambda n: n.publish(json=EVENT | {"dta": 1}),
        422,
        "unknown member dta; there are: data, event, retry, final",
    ),
    "the payload itself": (
        lambda n: n.publish(json={"severity": "low"}),
        422,
        "unknown member severity; there are: event, data, retry, final",
    ),
    "an unknown member in a batch": (
        lambda n: n.publish("/api/v1/sse", json={"events": [EVENT | {"chanel": "alerts"}]}),
        422,
        "unknown member events[0].chanel; there are: channel, ",
    ),
    "no type": (lambda n: n.publish(json={"data": {}}), 422, "event is missing: the type of the event"),
    "no data": (lambda n: n.publish(json={"event": "e"}), 422, "data is missing"),
    "a text without a type": (lambda n: n.publish(content="hi", headers=TEXT), 422, "takes ?event=TYPE"),
    "a text with another parameter": (
        lambda n: n.publish(f"{ALERTS}?events=e", content="hi", headers=TEXT),
        422,
        "unknown parameter events in the query of a text; there are: event, retry, final",
    ),
    "a batch to a channel": (
        lambda n: n.publish(json={"events": [EVENT]}),
        422,
        "several events go to /api/v1/sse",
    ),
    "one event to the batch": (
        lambda n: n.publish("/api/v1/sse", json=EVENT | {"channel": "alerts"}),
        422,
        "events is missing",
    ),
    "a list as a batch": (
        lambda n: n.publish("/api/v1/sse", json=[EVENT]),
        422,
        'must be a JSON object: this takes {"events": [',
    ),
    "a list": (lambda n: n.publish(json=[EVENT]), 422, 'must be a JSON object: this takes {"event", "data"}'),
    "a form": (lambda n: n.publish(data={"event": "e"}), 400, "Content-Type says that it is a form"),
    "what curl -d sends": (lambda n: n.publish(content="hi", headers=FORM), 400, "as curl -d has it"),
    "a form with files": (
        lambda n: n.publish(files={"event": b"e"}),
        400,
        "says that it is a form: send JSON",
    ),
    "nothing": (lambda n: n.publish(), 400, "the body is empty: this takes"),
    "quotes that a shell took": (
        lambda n: n.publish(content="{event: e, data: {}}"),
        400,
        "take double quotes",
    ),
    "a byte order mark": (
        lambda n: n.publish(content=b'\xef\xbb\xbf{"event": "e"}'),
        400,
        "a byte order mark",
    ),
    "single quotes": (lambda n: n.publish(content="{'event': 'e'}"), 400, "take double quotes in JSON"),
    "another encoding": (
        lambda n: n.publish(content='{"event": "é"}'.encode("latin-1")),
        400,
        "it is not in UTF-8",
    ),
    "a login by form": (
        lambda n: n.http.post(LOGIN, data={"username": "ann"}),
        400,
        "it is a form: send JSON",
    ),
    "a login by email": (
        lambda n: n.http.post(LOGIN, json={"email": "ann", "password": PASSWORD}),
        422,
        "unknown member email; there are: username, ",
    ),
    "a login without a password": (
        lambda n: n.http.post(LOGIN, json={"username": "ann"}),
        422,
        "password is missing",
    ),
    "one channel for a stream token": (
        lambda n: n.publish("/api/v1/auth/stream-token", json={"channel": "alerts"}),
        422,
        "unknown member channel; there are: channels",
    ),
    "a refresh with an access token": (lambda n: n.publish("/api/v1/auth/refresh"), 401, '{"refresh_token"}'),
}

PATHS: dict[str, tuple[Ask, int, str]] = {
    "capitals": (lambda n: n.get("/api/v1/sse/Alerts", token=n.stream), 400, "perhaps alerts is meant"),
    "a slash": (lambda n: n.get("/api/v1/sse/user/ann", token=n.stream), 404, "a channel has no slash"),
    "an escaped slash": (
        lambda n: n.get("/api/v1/sse/user%2Fann", token=n.stream),
        400,
        "perhaps user.ann is meant",
    ),
    "a slash at the end": (
        lambda n: n.get(f"{ALERTS}/", token=n.stream),
        404,
        "no path but / has a slash at its end",
    ),
    "a space after the comma": (
        lambda n: n.get("/api/v1/sse/alerts, dashboard", token=n.stream),
        400,
        "perhaps dashboard is meant",
    ),
    "a semicolon": (
        lambda n: n.get("/api/v1/sse/a;b", token=n.stream),
        400,
        "in segments with dots between them",
    ),
    "a part of a name": (
        lambda n: n.get("/api/v1/sse/al*", token=n.stream),
        400,
        "* stands for one whole segment",
    ),
    "a channel that is not granted": (
        lambda n: n.get("/api/v1/sse/alrets", token=n.stream),
        403,
        "does not allow to subscribe to alrets; it allows alerts, dashboard, user.ann.**",
    ),
    "to publish what is not granted": (
        lambda n: n.publish("/api/v1/sse/dashboard", json=EVENT),
        403,
        "does not allow to publish to dashboard; it allows alerts",
    ),
    "a page of another origin": (
        lambda n: n.http.post(LOGIN, json={"username": "ann"}, headers={"Origin": "http://localhost:3020"}),
        403,
        "not allowed: it is none of cors_origins",
    ),
    "two channels to publish to": (
        lambda n: n.publish("/api/v1/sse/alerts,dashboard", json=EVENT),
        400,
        "it takes one channel, not several",
    ),
    "a bad label to renew": (
        lambda n: n.http.post("/api/v1/sse/connections/a b/renew"),
        404,
        "a client_id matches",
    ),
    "an unknown path": (lambda n: n.get("/events"), 404, "/openapi.json lists what there is"),
    "PUT": (lambda n: n.http.put(ALERTS, json=EVENT), 405, "this path takes GET, HEAD and POST, not PUT"),
    "GET of the batch": (lambda n: n.get("/api/v1/sse"), 405, "this path takes POST, not GET"),
    "GET of the login": (lambda n: n.get(LOGIN), 405, "this path takes POST, not GET"),
    "after nonsense": (
        lambda n: n.get(f"{HISTORY}?after=nonsense", f"Bearer {n.access}"),
        400,
        "after is no event id",
    ),
    "after a number": (
        lambda n: n.get(f"{HISTORY}?after=12", f"Bearer {n.access}"),
        400,
        "after is no event id",
    ),
    "a stream's parameter for the history": (
        lambda n: n.get(f"{HISTORY}?since=-60", f"Bearer {n.access}"),
        400,
        "since is for streams; the history takes after and limit",
    ),
    "a limit in words": (
        lambda n: n.get(f"{HISTORY}?limit=all", f"Bearer {n.access}"),
        400,
        "limit must be a number from 1 to 1000",
    ),
}
MISTAKES = TOKENS | BODIES | PATHS

DESCRIPTION = json.loads((STATIC / "openapi.json").read_bytes())
CODES = DESCRIPTION["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]
"""Those that the server's description names."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_what_to_do(mistake: str, newcomer: Newcomer) -> None:
    ask, status, text = MISTAKES[mistake]
    answer = ask(newcomer)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert text in error["message"]
    assert error["code"] in CODES
    parts = [part for token in (newcomer.access, newcomer.stream) for part in token.split(".")]
    for secret in (PASSWORD, newcomer.refresh, *parts):
        assert secret not in answer.text


def test_an_id_of_another_log_is_no_mistake(newcomer: Newcomer) -> None:
    """A client that comes back after the log was replaced has done nothing wrong."""
    headers = {"Authorization": f"Bearer {newcomer.access}"}
    answer = newcomer.http.get(f"{HISTORY}?after=0123abcd-7", headers=headers)
    assert (answer.status_code, answer.json()["complete"]) == (200, False)


def test_a_stream_ignores_what_others_add_to_its_query(newcomer: Newcomer) -> None:
    """Clients that others wrote add parameters of their own, and a browser would give up for good at a 400."""
    answer = newcomer.get(ALERTS, token=newcomer.stream, _="1769860800", lastEventId="x-1", type="e")
    assert answer.status_code == 200


def test_json_that_curl_sends_as_a_form_is_published(newcomer: Newcomer) -> None:
    answer = newcomer.publish(content=b'{"event": "e", "data": {}}', headers=FORM)
    assert answer.status_code == 201


@pytest.fixture(params=["memory:", "sqlite:"])
def unstarted(request: pytest.FixtureRequest, io_loop: IOLoop, tmp_path: Path) -> Iterator[SSEApp]:
    """A server whose `start` has not been awaited."""
    sse = SSEApp(Settings(state_dir=tmp_path / "state", event_log=request.param))
    yield sse
    io_loop.run_sync(sse.stop)


@pytest.fixture
def app(unstarted: SSEApp) -> web.Application:
    """An application that it is mounted in."""
    return web.Application(list(unstarted.routes()))


@pytest.mark.usefixtures("http_server")
@pytest.mark.gen_test
async def test_what_is_not_started_says_so_and_stores_nothing(unstarted: SSEApp, base_url: str) -> None:
    with pytest.raises(NotStarted, match=r"await its start\(\)"):
        await unstarted.publish("alerts", "e", {})
    with pytest.raises(NotStarted, match=r"await its start\(\)"):
        await unstarted.publish_batch([{"channel": "alerts", **EVENT}])
    async with httpx.AsyncClient(base_url=base_url) as http:
        token = unstarted.token("ann", subscribe=["alerts"])
        stream = await http.get("/api/v1/sse/alerts", params={"token": token})
        issue = unstarted.node.tokens.issue
        access = issue(TokenKind.ACCESS, "ann", "s", Grants.of(publish=["alerts"]), 60)
        headers = {"Authorization": f"Bearer {access}"}
        refused = await http.post("/api/v1/sse/alerts", json=EVENT, headers=headers)
    assert (refused.status_code, refused.json()["error"]["message"]) == (503, "the server has not started")
    assert "event: closing" in stream.text
    await unstarted.start()
    id = await unstarted.publish("alerts", "e", {})
    assert id is not None
    assert id.seq == 1


def test_a_channel_that_is_not_configured_is_told_with_those_that_are(newcomer: Newcomer) -> None:
    """The token allows all; the settings name what there is."""
    headers = {"Authorization": f"Bearer {newcomer.anything}"}
    answers = [newcomer.http.post("/api/v1/sse/alrets", json=EVENT, headers=headers)]
    answers.append(newcomer.http.get("/api/v1/sse/alrets/history", headers=headers))
    for answer in answers:
        message = answer.json()["error"]["message"]
        assert answer.status_code == 404
        assert message.startswith("there is no channel alrets; the settings have alerts, ")


@pytest.mark.gen_test
async def test_mistakes_in_python_say_what_to_do(sse: SSEApp) -> None:
    for data, text in (
        ({1, 2}, "data cannot be written as JSON: Type is not JSON serializable: set"),
        ({"at": object()}, "Type is not JSON serializable: object"),
        ({1: "one"}, "Dict key must be str"),
        (b"bytes", "Type is not JSON serializable: bytes"),
    ):
        with pytest.raises(InvalidInput, match=text):
            await sse.publish("alerts", "e", data)
    for channel in (None, ["alerts"], 7):
        with pytest.raises(InvalidInput, match="channel must be the name of one channel"):
            await sse.publish(channel, "e", {})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="perhaps alerts is meant"):
        await sse.publish("Alerts", "e", {})
    for events in (["alerts"], {"channel": "alerts"}):
        with pytest.raises(InvalidInput, match=r"events\[0\] must be an object"):
            await sse.publish_batch(events)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"a list of channels, such as \['alerts'\]"):
        sse.token("ann", subscribe="alerts")  # type: ignore[arg-type]
    assert sse.node.eventlog.head.seq == 0
