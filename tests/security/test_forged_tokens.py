"""Every forged token is 401 at every door, whichever of four kinds of keys it pretends to be signed with."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection

import httpx
import pytest

from tests.support.forgeries import FORGED, LONGEST_LIFETIME
from tests.support.forging import DOORS, TYPES, Forge, make_forges
from tests.support.people import site
from tests.support.server_process import ServerProcess

BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@dataclass
class Gate:
    """A server whose key ring has a key of each kind."""

    server: ServerProcess
    http: httpx.Client
    forges: dict[str, Forge]
    connection: HTTPConnection

    def knock(self, door: str, token: str) -> int:
        """Try a token at a door, and return the status."""
        return DOORS[door].knock(self.connection, token)[0]


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    state_dir = tmp_path_factory.mktemp("forged") / "state"
    state_dir.mkdir(mode=0o700)
    forges = make_forges(state_dir / "keys")
    with site(state_dir, AUTH__LONGEST_LIFETIME=LONGEST_LIFETIME, LOG__LEVEL="info") as served:
        connection = HTTPConnection("127.0.0.1", served.server.port, timeout=30)
        yield Gate(served.server, served.http, {forge.algorithm: forge for forge in forges}, connection)
        connection.close()


@pytest.mark.parametrize("algorithm", ["HS256", "EdDSA", "ES256", "RS256"])
def test_a_token_that_is_not_forged_opens_every_door(gate: Gate, algorithm: str) -> None:
    for name, door in DOORS.items():
        status = gate.knock(name, gate.forges[algorithm].token(door.kind))
        assert status in ((404,) if name in ("renew", "kick") else (200, 201, 204)), (name, status)


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("algorithm", ["HS256", "EdDSA", "ES256", "RS256"])
def test_a_forged_token_is_401_at_every_door(gate: Gate, algorithm: str, forged: str) -> None:
    for name, door in DOORS.items():
        token = FORGED[forged](gate.forges[algorithm], door.kind)
        status, headers, body = door.knock(gate.connection, token)
        assert status == 401, name
        assert json.loads(body)["error"]["code"] == "invalid_token"
        assert headers["www-authenticate"] == 'Bearer error="invalid_token"'


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["HS256", "EdDSA", "ES256", "RS256"])
def test_a_signature_altered_in_any_one_bit_is_401(gate: Gate, algorithm: str) -> None:
    head, _, signature = gate.forges[algorithm].token("access").rpartition(".")
    for place in range(len(signature)):
        for bit in range(6):
            other = BASE64[BASE64.index(signature[place]) ^ 1 << bit]
            altered = f"{head}.{signature[:place]}{other}{signature[place + 1 :]}"
            assert gate.knock("me", altered) == 401, (place, bit)
    assert gate.knock("me", f"{head}.{signature}") == 200


@pytest.mark.parametrize("algorithm", ["HS256", "EdDSA", "ES256", "RS256"])
@pytest.mark.parametrize("segment", [0, 1, 2])
def test_the_last_character_of_each_part_counts_also_in_its_spare_bits_at_every_door(
    gate: Gate, algorithm: str, segment: int
) -> None:
    for name, door in DOORS.items():
        good = gate.forges[algorithm].token(door.kind)
        for bit in range(6):
            parts = good.split(".")
            parts[segment] = parts[segment][:-1] + BASE64[BASE64.index(parts[segment][-1]) ^ 1 << bit]
            assert gate.knock(name, ".".join(parts)) == 401, (name, bit)


def test_a_key_of_one_algorithm_does_not_vouch_for_the_id_of_another(gate: Gate) -> None:
    for signer in gate.forges.values():
        for named in gate.forges.values():
            if signer is not named:
                for alg in (signer.algorithm, named.algorithm):
                    header = signer.header("access", kid=named.kid, alg=alg)
                    token = signer.token("access", header=header)
                    assert gate.knock("me", token) == 401


MILLION = 1_000_000


def answer_to(gate: Gate, data: bytes) -> int:
    """Send a request, and return the status of the answer; 0 where the connection is closed without one."""
    with socket.create_connection(("127.0.0.1", gate.server.port), 30) as connection:
        try:
            connection.sendall(data)
            received = connection.recv(4096)
        except ConnectionError:
            return 0
    return int(received.split()[1]) if received else 0


@pytest.mark.parametrize("name", DOORS)
def test_a_token_of_a_megabyte_gets_a_4xx_or_a_closed_connection(gate: Gate, name: str) -> None:
    door = DOORS[name]
    forge = gate.forges["HS256"]
    tokens = (
        b"A" * MILLION,
        forge.token(door.kind, claims=forge.claims(more="x" * MILLION)).encode(),
        b".".join([b"A" * (MILLION // 3)] * 3),
    )
    for token in tokens:
        target = door.path.encode()
        length = b"" if door.method == "GET" else b"Content-Length: 0\r\n"
        in_header = b"%s %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n%s\r\n"
        in_query = b"%s %s?token=%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n"
        for request in (in_header, in_query):
            status = answer_to(gate, request % (door.method.encode(), target, token, length))
            assert status == 0 or 400 <= status < 500, status
    assert gate.http.get("/readyz").status_code == 200


@pytest.mark.parametrize("path", ["refresh", "logout", "stream-token", "login"])
def test_a_token_of_a_megabyte_in_a_body_gets_a_4xx(gate: Gate, path: str) -> None:
    token = gate.forges["HS256"].token("access")
    headers = {"Authorization": f"Bearer {token}"} if path == "stream-token" else {}
    for body in (
        {"refresh_token": "A" * MILLION},
        {"refresh_token": "A" * 2 * MILLION},
        {"channels": ["A" * MILLION]},
        {"username": "A" * MILLION, "password": "A"},
        "A" * MILLION,
    ):
        answer = gate.http.post(f"/api/v1/auth/{path}", json=body, headers=headers)
        assert 400 <= answer.status_code < 500, answer.text


def test_every_door_has_a_kind() -> None:
    assert {door.kind for door in DOORS.values()} == set(TYPES)
