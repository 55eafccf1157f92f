"""``check-token``: says what a token is, whose, and whether this server takes it or why not; never prints the token."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import logging
import sys
import time
from typing import Any, NamedTuple

from sse_app.auth.accounts.sessions import Sessions
from sse_app.auth.factory import issuer_with, provider_of
from sse_app.auth.revocations import Revocations
from sse_app.auth.tokens.claims import is_time
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind, is_compact
from sse_app.cli.auth_store import auth_store, keys_in_use
from sse_app.cli.options import settings_of
from sse_app.core.errors import (
    AuthStoreUnavailable,
    InvalidInput,
    Kicked,
    ProviderUnavailable,
    SSEAppError,
    StateError,
    TokenRefused,
)
from sse_app.core.events import timestamp
from sse_app.process.standard_streams import complain
from sse_app.settings.model import Settings

KINDS = {
    "at+jwt": "access token: for publishing, /api/v1/auth and /api/v1/admin, in the Authorization header",
    "stream+jwt": "stream token: opens streams, and can do nothing else",
}
"""What is said of each kind, by the ``typ`` of the token's header."""

REASONS = {
    "unknown kid": "this server has no key of that id: the token is another server's, or its key was removed",
    "InvalidSignatureError": "the signature is wrong: the token was changed, or signed with another key of that id",
    "signature with spare bits": "the signature is not written as it was issued",
    "expired": "it has expired: get another one, by a refresh or a login",
    "ImmatureSignatureError": "it is dated in the future: the clock here, or where it was issued, is wrong",
    "InvalidIssuerError": "its issuer (iss) is not auth.issuer of the settings",
    "InvalidAudienceError": "its audience (aud) is not auth.audience of the settings",
    "MissingRequiredClaimError": "a claim is missing: iss, aud, sub, iat, exp, jti, sid and sse are needed",
    "revoked": "it was revoked: by a logout, a new password, another change of the account, or an administrator",
    "lifetime": "it is valid for longer than auth.longest_lifetime allows",
    "InvalidChannel": "its grants (sse) have not the form of grants",
}
"""What is said of each cause of a refusal, beyond what a client is told."""

SHOWN = 200
"""How many characters of a text are printed."""

STDIN_LIMIT = 64 * 1024
"""How many characters are read of standard input."""


class Finding(NamedTuple):
    """What was found out about a token.

    Args:
        problem: why the server does not take it; empty where it does.
        unknown: whether that could not be found out, and ``problem`` says why not.
        provider_grants: what a token of the OpenID provider means here; None for any other.
    """

    problem: str = ""
    unknown: bool = False
    provider_grants: Grants | None = None


def check_token(options: argparse.Namespace) -> int:
    """Print what a token is and whether it is taken; return 1 where it is not, or that cannot be found out.

    Raises:
        InvalidInput: there is no token.
        SettingsError: a setting has a bad value.
    """
    token = _token(options)
    settings = settings_of(options)
    if "." not in token:
        return asyncio.run(_check_opaque(options, token))
    header, payload = _unverified(token)
    if header is None or payload is None:
        print("not valid: it is no token: three parts with dots between them, of base64 without padding")
        return 1
    finding = asyncio.run(_check(options, settings, token, header))
    if finding.unknown:
        print(f"not known whether it is valid: {finding.problem}")
    elif finding.problem:
        print(f"not valid: {finding.problem}")
    elif finding.provider_grants is not None:
        print("valid: this server takes it, for stream tokens at /api/v1/auth/stream-token")
    else:
        print("valid: this server takes it")
    if finding.problem:
        print("what it says of itself, which was not verified:")
    _print_claims(header, payload, finding.provider_grants)
    return 1 if finding.problem else 0


def _token(options: argparse.Namespace) -> str:
    """Return the token, without what often stands before it."""
    given: str = options.token
    if given == "-":
        # getpass does not show what is typed.
        given = getpass.getpass("token: ") if sys.stdin.isatty() else sys.stdin.read(STDIN_LIMIT)
    else:
        complain(
            "warning: other users of this machine can see what is on a command line: give the token on standard input"
        )
    given = given.strip()
    if given[:7].lower() == "bearer ":
        given = given[7:].lstrip()
    if not given:
        raise InvalidInput("there is no token on standard input")
    return given


def _unverified(token: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return header and payload as they are written, or None for what cannot be read."""
    if not is_compact(token):
        return None, None
    from sse_app.auth.tokens import jose

    header, payload, _ = token.split(".")
    return jose.object_in(header), jose.object_in(payload)


async def _check(
    options: argparse.Namespace, settings: Settings, token: str, header: dict[str, Any]
) -> Finding:
    """Verify a token as the server does, with what is revoked and kicked."""
    provider = provider_of(settings.oidc, settings.auth)
    logging.getLogger("sse_app").addHandler(
        logging.NullHandler()
    )  # what is logged of its keys is in the error too
    kind = next((kind for kind in TokenKind if kind.value == header.get("typ")), None)
    try:
        async with auth_store(options) as (store, _):
            revocations = Revocations(store, settings.auth.longest_lifetime)
            await revocations.learn()
            tokens = issuer_with(await keys_in_use(settings, store), settings.auth, revocations)
            if provider is not None and provider.issued(token):
                claims = await provider.verify(token)
                tokens.require_in_force(claims)
                tokens.require_not_kicked(claims)
                return Finding(provider_grants=claims.grants)
            if kind is None:
                return Finding(
                    f"it is of no kind of this server's: typ is {_shown(header.get('typ'))}, "
                    f"and would be {' or '.join(KINDS)}"
                    + ("" if provider else "; a provider's token takes the section [oidc] of the settings")
                )
            tokens.require_not_kicked(tokens.verify(token, kind))
    except TokenRefused as error:
        cause = error.detail.removesuffix(" at the provider")
        return Finding(REASONS.get(cause, str(error) if cause == str(error) else f"{error} ({cause})"))
    except Kicked as error:
        return Finding(f"{error}, for another {error.wait:.0f} s")
    except (StateError, AuthStoreUnavailable, ProviderUnavailable) as error:
        return Finding(str(error), unknown=True)
    return Finding()


async def _check_opaque(options: argparse.Namespace, token: str) -> int:
    """Say of a text without dots whether it is a refresh token; one that is spent is known too."""
    try:
        async with auth_store(options) as (store, settings):
            found = await Sessions(store, settings.auth).find(token)
    except SSEAppError as error:
        print(f"not known whether it is valid: it may be a refresh token, and {error}")
        return 1
    if found is None:
        print("not valid: it is neither an access or stream token nor a refresh token of an open session")
        return 1
    session, subject = found
    print("known: a refresh token of a session that has not ended")
    print(f"subject: {_shown(subject)}")
    print(f"session: {_shown(session)}")
    print("whether it is spent already only a refresh tells, which spends it")
    return 0


def _print_claims(header: dict[str, Any], payload: dict[str, Any], provider_grants: Grants | None) -> None:
    kind = KINDS.get(str(header.get("typ")), "a token of another issuer")
    if provider_grants is not None:
        kind = "access token of the OpenID provider"
    print(f"kind: {kind}")
    print(f"key: {_shown(header.get('kid'))} ({_shown(header.get('alg'))})")
    for name, claim in (
        ("subject", "sub"),
        ("session", "sid"),
        ("id", "jti"),
        ("issuer", "iss"),
        ("audience", "aud"),
    ):
        if claim in payload:
            print(f"{name}: {_shown(payload[claim])}")
    grants = payload.get("sse") if provider_grants is None else provider_grants.to_claim()
    if isinstance(grants, dict):
        for name in ("subscribe", "publish", "presence"):
            if grants.get(name):
                patterns = grants[name]
                listed = ", ".join(map(str, patterns)) if isinstance(patterns, list) else patterns
                print(f"{name}: {_shown(listed)}")
        if grants.get("admin"):
            print("admin: yes")
    now = time.time()
    for name, claim in (("issued", "iat"), ("expires", "exp")):
        moment: Any = payload.get(claim)
        if is_time(moment):
            print(f"{name}: {_time(moment)} ({_distance(moment - now)})")


def _time(seconds: float) -> str:
    try:
        return timestamp(seconds)
    except (ValueError, OverflowError):  # a year of five digits
        return f"{seconds:.0f}"


def _distance(seconds: float) -> str:
    return f"in {seconds:.0f} s" if seconds >= 0 else f"{-seconds:.0f} s ago"


def _shown(value: object) -> str:
    """Return a value of a token for a terminal: what it says may be made up to do harm there."""
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return text if text.isprintable() else ascii(text)[1:-1]
