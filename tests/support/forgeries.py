"""What forgers try: each entry makes a token that is right in everything but one thing."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable

from tests.support.forging import Forge, Make, encoded, sign

LONGEST_LIFETIME = 3600
"""Of the server that the tokens are tried at, in seconds."""

NO_ALGORITHMS: list[object] = ["none", "nONE", [], {}, 0]
TWICE: list[tuple[int, str, object]] = [
    (0, "alg", "none"),
    (0, "kid", "x"),
    (0, "typ", "JWT"),
    (1, "sub", "root"),
    (1, "exp", 9**11),
    (1, "sse", {}),
]
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


def with_member_twice(segment: int, name: str, value: object, *, good_first: bool) -> Make:
    def make(forge: Forge, kind: str) -> str:
        parts = [json.dumps(forge.header(kind)), json.dumps(forge.claims())]
        good, other = parts[segment][1:-1], json.dumps({name: value})[1:-1]
        parts[segment] = "{" + (f"{good}, {other}" if good_first else f"{other}, {good}") + "}"
        return forge.token(kind, header=parts[0].encode(), claims=parts[1].encode())

    return make


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
    "exp beyond the longest lifetime": seconds_ahead("exp", LONGEST_LIFETIME + 60),
    "nbf ahead": seconds_ahead("nbf", 60),
    "nbf a text": claims(nbf="soon"),
    "iat ahead": seconds_ahead("iat", 60),
    "iat far in the past": seconds_ahead("iat", -LONGEST_LIFETIME - 10),
    **{f"sse {sse!r}": claims(sse=sse) for sse in ([], "**", None, GOOD, {"subscribe": "**"}, {"admin": 1})},
    "a surrogate in the subject": claims(sub="\ud800"),
    **{
        f"{name} twice, the good one {'first' if good_first else 'last'}": with_member_twice(
            segment, name, value, good_first=good_first
        )
        for good_first in (True, False)
        for segment, name, value in TWICE
    },
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
