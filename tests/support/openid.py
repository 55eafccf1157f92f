"""A small OpenID provider on a real socket, and our server beside it that believes its tokens."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from tests.support.forging import sign
from tests.support.people import Site, site

ISSUER = "https://login.example/realms/desk"
AUDIENCE = "desk"
LONGEST = 3600


class Issuer:
    """An OpenID provider: its keys, the document in which it publishes them, and how it behaves."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[str, Any]] = {}
        self.fetched: list[float] = []
        self.body: bytes | None = None
        self.delay = 0.0
        self.status = 200
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetched.append(time.monotonic())
                time.sleep(issuer.delay)
                body = issuer.document() if issuer.body is None else issuer.body
                self.send_response(issuer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:
                    return

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, kid: str, algorithm: str = "ES256") -> None:
        match algorithm:
            case "EdDSA":
                key: Any = ed25519.Ed25519PrivateKey.generate()
            case "ES256":
                key = ec.generate_private_key(ec.SECP256R1())
            case _:
                key = rsa.generate_private_key(65_537, 2048)
        self.keys[kid] = (algorithm, key)

    def document(self) -> bytes:
        keys = []
        for kid, (algorithm, key) in self.keys.items():
            jwk = get_default_algorithms()[algorithm].to_jwk(key.public_key(), as_dict=True)
            keys.append({**jwk, "kid": kid, "alg": algorithm, "use": "sig"})
        return json.dumps({"keys": keys}).encode()

    def token(self, kid: str, header: dict[str, object] | None = None, **claims: object) -> str:
        """Return a token of a user in the group ``traders``; ``...`` leaves a claim out."""
        now = int(time.time())
        good = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "kim",
            "iat": now,
            "exp": now + 300,
            "groups": ["traders"],
        }
        merged = {name: value for name, value in (good | claims).items() if value is not ...}
        algorithm, key = self.keys[kid]
        return sign(algorithm, key, {"alg": algorithm, "typ": "at+jwt", "kid": kid, **(header or {})}, merged)


@contextmanager
def served(state_dir: Path, jwks_url: str, **settings: Any) -> Iterator[Site]:
    with site(
        state_dir,
        expected=("provider_unavailable",),
        AUTH__LONGEST_LIFETIME=LONGEST,
        OIDC__ISSUER=ISSUER,
        OIDC__AUDIENCE=AUDIENCE,
        OIDC__JWKS_URL=jwks_url,
        OIDC__GRANTS={"*": {"subscribe": ["dashboard"]}, "traders": {"subscribe": ["alerts", "training"]}},
        **settings,
    ) as served:
        yield served
