"""Every forged token is 401 at every door, whichever of four kinds of keys it pretends to be signed with."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection

import httpx
import pytest

from tests.forging import DOORS, TYPES, Forge, Make, encoded, make_forges, sign
from tests.people import site
from tests.server_process import ServerProcess

BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
LONGEST = 3600


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
    with site(state_dir, AUTH__LONGEST_LIFETIME=LONGEST, LOG__LEVEL="info") as served:
        connection = HTTPConnection("127.0.0.1", served.server.port, timeout=30)
        yield Gate(served.server, served.http, {forge.algorithm: forge for forge in forges}, connection)
        connection.close()


NO_ALGORITHMS: list[object] = ["none", "nONE", [], {}, 0]
NO_EXPIRIES: list[object] = [True, None, [], {}, -1, 0, 1e300, 10**400, 2**63]


def header(**members: object) -> Make:
    return lambda forge, kind: forge.token(kind, header=forge.header(kind, **members))


def claims(**members: object) -> Make:
    return lambda forge, kind: forge.token(kind, claims=forge.claims(**members))


def seconds_ahead(name: str, seconds: float, as_text: bool = False) -> Make:
    def make(forge: Forge, kind: str) -> str:
        moment: object = int(time.time() + seconds)
        return forge.token(kind, claims=forge.claims(**{name: str(moment) if as_text else moment}))

    return make


def unsigned(alg: object, signature: str = "") -> Make:
    def make(forge: Forge, kind: str) -> str:
        return f"{encoded(forge.header(kind, alg=alg))}.{encoded(forge.claims())}.{signature}"

    return make


def rewritten(change: Callable[[str, str, str], str]) -> Make:
    """Alter a good token as a text."""

    def make(forge: Forge, kind: str) -> str:
        head, payload, signature = forge.token(kind).split(".")
        return change(head, payload, signature)

    return make


def with_member_twice(segment: int, name: str, value: object) -> Make:
    """Write a member before the good one and another time behind it, so that whichever counts one is wrong."""

    def make(first: bool) -> Make:
        def token(forge: Forge, kind: str) -> str:
            parts = [json.dumps(forge.header(kind)), json.dumps(forge.claims())]
            more = json.dumps({name: value})[1:-1]
            inner = parts[segment][1:-1]
            parts[segment] = "{" + (f"{more}, {inner}" if first else f"{inner}, {more}") + "}"
            return forge.token(kind, header=parts[0].encode(), claims=parts[1].encode())

        return token

    return lambda forge, kind: make(bool(time.monotonic_ns() & 1024))(forge, kind)


def signed_with(secret: int) -> Make:
    """Sign as HS256 with a form of the public key as the secret (RFC 8725 §2.1)."""

    def make(forge: Forge, kind: str) -> str:
        encodings = forge.public_encodings()
        key = encodings[secret % len(encodings)]
        return sign("HS256", key, forge.header(kind, alg="HS256"), forge.claims())

    return make


def signed_by_another(forge: Forge, kind: str) -> str:
    """Sign rightly with a key of the same kind that is the attacker's own, and bring it along."""
    key = base64.urlsafe_b64encode(b"k" * 32).decode().rstrip("=")
    jwk = {"kty": "oct", "k": key, "alg": "HS256", "kid": forge.kid}
    return sign("HS256", b"k" * 32, forge.header(kind, alg="HS256", jwk=jwk), forge.claims())


def nested(forge: Forge, kind: str) -> str:
    """Put a good token into a token (RFC 7519 §5.2)."""
    inner = forge.token(kind)
    return forge.token(kind, header=forge.header(kind, cty="JWT"), claims=json.dumps(inner).encode())


def as_json(forge: Forge, kind: str) -> str:
    """Use the JSON serialization (RFC 7515 §7.2), in base64 so that a header can carry it."""
    protected, payload, signature = forge.token(kind).split(".")
    return encoded({"protected": protected, "payload": payload, "signature": signature})


DEEP = b'{"a":' * 1200 + b"1" + b"}" * 1200
GOOD = [{"subscribe": ["**"], "publish": ["**"], "admin": True}]
FORGED: dict[str, Make] = {
    **{f"alg {alg!r} unsigned": unsigned(alg) for alg in ("none", "None", "NONE", "nOnE", "none ", "", None)},
    **{f"alg {alg!r} with some signature": unsigned(alg, "c2ln") for alg in NO_ALGORITHMS},
    **{f"HS256 with form {form} of the public key": signed_with(form) for form in range(8)},
    **{
        f"alg {alg} of a key of another algorithm": header(alg=alg)
        for alg in ("HS384", "HS512", "RS384", "PS256", "ES384", "ES256K", "Ed448", "hs256", "RSA", "A")
    },
    "a jwk of the attacker's": signed_by_another,
    **{f"kid {str(kid)[:20]!r}": header(kid=kid) for kid in ("unknown", "", "../keys/rsa", "*", "rsa.pem")},
    **{f"kid {kid!r} of the wrong type": header(kid=kid) for kid in (None, 1, ["rsa"], {"rsa": 1}, ...)},
    **{
        f"header {name}": header(**{name: value})
        for name, value in {
            "jku": "http://127.0.0.1:1/jwks.json",
            "x5u": "http://127.0.0.1:1/cert.pem",
            "jwk": {"kty": "oct", "k": "AAAA"},
            "x5c": ["MIIB"],
            "zip": "DEF",
            "enc": "A256GCM",
            "b64": False,
        }.items()
    },
    **{f"crit {value!r}": header(crit=value) for value in (["x"], ["exp"], [], "x", None, {"x": 1})},
    **{f"typ {typ!r}": header(typ=typ) for typ in ("JWT", "", None, "AT+JWT ", "refresh+jwt", ["at+jwt"], ...)},
    "typ of the other kind": lambda forge, kind: forge.token("access" if kind == "stream" else "stream"),
    **{f"iss {iss!r}": claims(iss=iss) for iss in ("another", "", "sse_app/", ["sse_app"], None, ...)},
    **{f"aud {aud!r}": claims(aud=aud) for aud in ("another", "", [], ["another"], ["sse_app", "b"], None, ...)},
    **{f"{name} missing": claims(**{name: ...}) for name in ("exp", "iat", "sub", "jti", "sid", "sse")},
    **{f"{name} empty": claims(**{name: ""}) for name in ("exp", "iat", "sub", "jti", "sid", "sse")},
    "exp a text": seconds_ahead("exp", 600, as_text=True),
    "iat a text": seconds_ahead("iat", 0, as_text=True),
    **{f"exp {exp!r}": claims(exp=exp) for exp in NO_EXPIRIES},
    "exp just past": seconds_ahead("exp", -1),
    "exp beyond the longest lifetime": seconds_ahead("exp", LONGEST + 60),
    "nbf ahead": seconds_ahead("nbf", 60),
    "nbf a text": claims(nbf="soon"),
    "iat ahead": seconds_ahead("iat", 60),
    "iat far in the past": seconds_ahead("iat", -LONGEST - 10),
    **{f"sse {sse!r}": claims(sse=sse) for sse in ([], "**", None, GOOD, {"subscribe": "**"}, {"admin": 1})},
    "a surrogate in the subject": claims(sub="\ud800"),
    "claim sub twice": with_member_twice(1, "sub", "root"),
    "claim exp twice": with_member_twice(1, "exp", 9**11),
    "claim sse twice": with_member_twice(1, "sse", {}),
    "member alg twice": with_member_twice(0, "alg", "none"),
    "member kid twice": with_member_twice(0, "kid", "x"),
    "member typ twice": with_member_twice(0, "typ", "JWT"),
    "a payload that is a list": lambda forge, kind: forge.token(kind, claims=[forge.claims()]),
    "a payload that is no JSON": lambda forge, kind: forge.token(kind, claims=b"exp=1"),
    "a payload of nested JSON": lambda forge, kind: forge.token(kind, claims=DEEP),
    "a header of nested JSON": lambda forge, kind: forge.token(kind, header=DEEP),
    "NaN as expiry": claims(exp=float("nan")),
    "infinity as expiry": claims(exp=float("inf")),
    "a token in a token": nested,
    "the JSON serialization": as_json,
    "a token of five parts": rewritten(lambda h, p, s: f"{h}.{p}.{s}.{p}.{s}"),
    "no signature": rewritten(lambda h, p, s: f"{h}.{p}."),
    "no signature and no dot": rewritten(lambda h, p, s: f"{h}.{p}"),
    "a signature cut short": rewritten(lambda h, p, s: f"{h}.{p}.{s[:-1]}"),
    "a signature of one half": rewritten(lambda h, p, s: f"{h}.{p}.{s[: len(s) // 2]}"),
    "a signature of zeros": rewritten(lambda h, p, s: f"{h}.{p}.{'A' * len(s)}"),
    "a signature twice": rewritten(lambda h, p, s: f"{h}.{p}.{s}{s}"),
    "a signature with a tail": rewritten(lambda h, p, s: f"{h}.{p}.{s}AAAA"),
    "a signature padded": rewritten(lambda h, p, s: f"{h}.{p}.{s}{'=' * (-len(s) % 4 or 4)}"),
    "a header padded": rewritten(lambda h, p, s: f"{h}{'=' * (-len(h) % 4 or 4)}.{p}.{s}"),
    "a payload padded": rewritten(lambda h, p, s: f"{h}.{p}{'=' * (-len(p) % 4 or 4)}.{s}"),
    "a payload cut short": rewritten(lambda h, p, s: f"{h}.{p[:-3]}.{s}"),
    "no header": rewritten(lambda h, p, s: f".{p}.{s}"),
    "the parts in another order": rewritten(lambda h, p, s: f"{p}.{h}.{s}"),
    "nothing": lambda forge, kind: ".",
}  # fmt: skip


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
        in_header = b"%s %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\n%s\r\n"
        in_query = b"%s %s?token=%s HTTP/1.1\r\nHost: a\r\n%s\r\n"
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
