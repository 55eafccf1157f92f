"""A client that openapi-python-client makes from the server's description: all of it, and it works."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.support.environments import environment_with
from tests.support.server_process import ServerProcess

PROGRAM = """
import json, sys
from made import AuthenticatedClient, Client
from made.api.administration import revoke
from made.api.events import history, publish, publish_batch
from made.api.operations import keys, status
from made.api.tokens import login, me, stream_token
from made.models import Batch, BatchEventsItem, Credentials, NewEvent, Revocation, StreamTokenRequest

url, password = sys.argv[1:]
with Client(url, raise_on_unexpected_status=True) as client:
    tokens = login.sync(client=client, body=Credentials("ann", password, cookie=False))
    assert status.sync(client=client).status == "active"
    (key,) = keys.sync(client=client).keys
    assert key.key_ops == ["verify"]
with AuthenticatedClient(url, tokens.access_token, raise_on_unexpected_status=True) as client:
    stored = publish.sync("alerts", client=client, body=NewEvent("risk_alert", {"severity": "low"}))
    batch = Batch([BatchEventsItem("alerts", "note", "a text")])
    ids = publish_batch.sync(client=client, body=batch).ids
    events = history.sync("alerts", client=client, after=stored.id).events
    assert [event.id for event in events] == ids
    assert me.sync(client=client).subject == "ann"
    assert stream_token.sync(client=client, body=StreamTokenRequest(channels=["alerts"])).stream_token
    assert revoke.sync(client=client, body=Revocation(all_=True)).scope == "all"
    print(json.dumps([stored.id, *ids]))
"""


@pytest.mark.long
def test_a_client_is_made_of_the_whole_description_and_works(server: ServerProcess, tmp_path: Path) -> None:
    programs = environment_with("client_generator")
    server.command("keys", "rotate", "--algorithm", "EdDSA")
    server.add_user("ann", "correct horse battery", subscribe="alerts", publish="alerts", admin=True)
    (tmp_path / "openapi.json").write_bytes(httpx.get(f"{server.url}/openapi.json").content)
    generate = [
        str(programs / "openapi-python-client"),
        *("generate", "--path", "openapi.json", "--output-path", "made", "--meta", "none"),
    ]
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    made = subprocess.run(
        generate, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (made.returncode, made.stdout.strip(), made.stderr) == (0, "Generating made", ""), made.stdout
    described = json.loads((tmp_path / "openapi.json").read_text())
    operations = {
        operation["operationId"]
        for methods in described["paths"].values()
        for operation in methods.values()
        if isinstance(operation, dict) and "operationId" in operation
    }
    modules = {path.stem for path in (tmp_path / "made/api").rglob("*.py")} - {"__init__"}
    assert len(modules) == len(operations), "one for each operation"
    program = [str(programs / "python"), "-c", PROGRAM, server.url, "correct horse battery"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 2
