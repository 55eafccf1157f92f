"""``token``: mints a token with the keys of the state directory."""

from __future__ import annotations

import argparse

from sse_app.auth.factory import issuer_of
from sse_app.auth.tokens.claims import new_id
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.cli.options import grants_of, settings_of
from sse_app.core.channels import own_patterns
from sse_app.core.errors import InvalidInput
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import StateDirectory


def mint(options: argparse.Namespace) -> None:
    """Print a token, and nothing else.

    Raises:
        InvalidInput: the flags contradict each other or are out of bounds.
    """
    grants = grants_of(options)
    kind = TokenKind.ACCESS if options.kind == "access" else TokenKind.STREAM
    if kind is TokenKind.STREAM and (grants.publish.texts or grants.admin):
        raise InvalidInput("a stream token can only subscribe: --publish and --admin need --kind access")
    if options.ttl < 1:
        raise InvalidInput("--ttl must be at least 1 second")
    settings = settings_of(options)
    if options.ttl > settings.auth.longest_lifetime:
        longest = settings.auth.longest_lifetime
        raise InvalidInput(f"--ttl must be at most {longest} seconds (auth.longest_lifetime)")
    if not options.subject:
        raise InvalidInput("--subject must not be empty")
    if kind is TokenKind.ACCESS:
        grants = grants.with_subscriptions(own_patterns(settings.auth.own_channels, options.subject))
    print(mint_with_own_keys(settings, kind, options.subject, grants, options.ttl, options.session))


def mint_with_own_keys(
    settings: Settings, kind: TokenKind, subject: str, grants: Grants, ttl: float, session: str | None = None
) -> str:
    """Return a token signed with the keys in the state directory.

    Raises:
        StateError: they cannot be read.
    """
    tokens = issuer_of(settings.auth, StateDirectory(settings.state_dir))
    return tokens.issue(kind, subject, session or new_id(), grants, ttl)
