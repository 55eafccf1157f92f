"""Tokens made with keys of four kinds, right in everything but one thing, and the doors that they are tried at."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

TYPES = {"access": "at+jwt", "stream": "stream+jwt"}


def encoded(part: object) -> str:
    """Return a segment of a token: bytes as they are, anything else as JSON."""
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign(algorithm: str, key: Any, header: object, payload: object) -> str:
    """Sign anything whatever as if it were a JWT: a JWT library would refuse most of it."""
    signed = f"{encoded(header)}.{encoded(payload)}"
    return f"{signed}.{encoded(get_default_algorithms()[algorithm].sign(signed.encode(), key))}"


@dataclass(frozen=True)
class Forge:
    """A key that the server knows, and what can be made with it."""

    algorithm: str
    kid: str
    key: Any

    def header(self, kind: str, **members: object) -> dict[str, object]:
        """Return a good header; ``...`` leaves a member out."""
        header = {"alg": self.algorithm, "kid": self.kid, "typ": TYPES[kind], **members}
        return {name: value for name, value in header.items() if value is not ...}

    def claims(self, **members: object) -> dict[str, object]:
        """Return good claims; ``...`` leaves one out."""
        now = int(time.time())
        number = time.monotonic_ns()
        claims = {
            "iss": "sse_app",
            "aud": "sse_app",
            "sub": "forger",
            "iat": now,
            "exp": now + 600,
            "jti": f"j{number}",
            "sid": f"s{number}",
            "sse": {"subscribe": ["**"], "publish": ["**"], "admin": True},
            **members,
        }
        return {name: value for name, value in claims.items() if value is not ...}

    def token(self, kind: str, header: object = None, claims: object = None) -> str:
        """Return a token with a right signature, whatever it says."""
        header = self.header(kind) if header is None else header
        return sign(self.algorithm, self.key, header, self.claims() if claims is None else claims)

    def public_encodings(self) -> list[bytes]:
        """Return what of this key everybody may know, in the forms that an attacker would try as a secret."""
        if self.algorithm == "HS256":
            return [self.kid.encode(), b"", b"secret" * 6]
        public = self.key.public_key()
        forms = serialization.PublicFormat
        encodings = [
            public.public_bytes(serialization.Encoding.PEM, forms.SubjectPublicKeyInfo),
            public.public_bytes(serialization.Encoding.DER, forms.SubjectPublicKeyInfo),
        ]
        if self.algorithm == "RS256":
            encodings.append(public.public_bytes(serialization.Encoding.PEM, forms.PKCS1))
        else:
            raw = (forms.Raw, serialization.Encoding.Raw)
            point = (forms.UncompressedPoint, serialization.Encoding.X962)
            form, encoding = raw if self.algorithm == "EdDSA" else point
            encodings.append(public.public_bytes(encoding, form))
        jwk = get_default_algorithms()[self.algorithm].to_jwk(public, as_dict=True)
        encodings += [json.dumps(jwk).encode(), json.dumps(jwk, separators=(",", ":")).encode()]
        encodings += [base64.urlsafe_b64decode(str(jwk.get("n", jwk.get("x"))) + "==")]
        return [*encodings, encodings[0].strip(), encodings[0].replace(b"\n", b"\r\n")]


def make_forges(directory: Path) -> list[Forge]:
    """Write a key of each kind into the directory of a server's keys."""
    directory.mkdir(mode=0o700, parents=True)
    secret = os.urandom(32)
    (directory / "secret.hs256").write_bytes(secret)
    forges = [Forge("HS256", "secret", secret)]
    for algorithm, kid, key in (
        ("EdDSA", "edwards", ed25519.Ed25519PrivateKey.generate()),
        ("ES256", "elliptic", ec.generate_private_key(ec.SECP256R1())),
        ("RS256", "rsa", rsa.generate_private_key(65_537, 2048)),
    ):
        (directory / f"{kid}.pem").write_bytes(private_pem(key))
        forges.append(Forge(algorithm, kid, key))
    for file in directory.iterdir():
        file.chmod(0o600)
    return forges


def private_pem(key: Any) -> bytes:
    """Return a private key as an operator would have it."""
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem


@dataclass(frozen=True)
class Door:
    """An endpoint that takes a token."""

    kind: str
    method: str
    path: str
    body: object = None

    def knock(self, http: HTTPConnection, token: str) -> tuple[int, dict[str, str], bytes]:
        """Try a token, and return status, headers and body; of a stream that opens only its head is read."""
        headers, path = {"Authorization": f"Bearer {token}"}, self.path
        if path == "/api/v1/sse/dashboard" and self.method == "GET":
            headers, path = {}, f"{path}?{urlencode({'token': token})}"
        body = None if self.body is None else json.dumps(self.body)
        http.request(self.method, path, body, headers)
        answer = http.getresponse()
        opened = answer.status == 200 and answer.headers["Content-Type"] == "text/event-stream"
        received = b"" if opened else answer.read()
        if opened:
            answer.close()
            http.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, received


EVENT = {"event": "e", "data": {}}
DOORS = {
    "stream": Door("stream", "GET", "/api/v1/sse/dashboard"),
    "renew": Door("stream", "POST", "/api/v1/sse/connections/c1/renew"),
    "publish": Door("access", "POST", "/api/v1/sse/dashboard", EVENT),
    "batch": Door("access", "POST", "/api/v1/sse", {"events": [{"channel": "dashboard", **EVENT}]}),
    "history": Door("access", "GET", "/api/v1/sse/dashboard/history"),
    "stream-token": Door("access", "POST", "/api/v1/auth/stream-token", {"channels": ["dashboard"]}),
    "me": Door("access", "GET", "/api/v1/auth/me"),
    "logout": Door("access", "POST", "/api/v1/auth/logout"),
    "connections": Door("access", "GET", "/api/v1/admin/connections"),
    "kick": Door("access", "POST", "/api/v1/admin/connections/1/kick"),
    "revocations": Door("access", "POST", "/api/v1/admin/revocations", {"subject": "nobody"}),
    "audit": Door("access", "GET", "/api/v1/admin/audit"),
}

Make = Callable[[Forge, str], str]
