"""``revoke`` and ``audit``: take tokens back, and see what was done; beside a running server or without one."""

from __future__ import annotations

import argparse
import json
import time

from sse_app.auth.accounts.sessions import revoke_with_sessions
from sse_app.auth.audit import AuditEntry
from sse_app.auth.revocations import Revocation, require_no_token
from sse_app.cli.auth_database import auth_database, note
from sse_app.core.errors import InvalidInput
from sse_app.core.events import timestamp
from sse_app.settings.model import Settings


def revoke(options: argparse.Namespace) -> None:
    """Revoke tokens."""
    with auth_database(options) as (database, settings):
        revocation = _revocation(options, settings)
        with database.transaction() as connection:
            revoke_with_sessions(connection, revocation)
        note(database, "revocation", revocation.value, revocation.scope.value)


def _revocation(options: argparse.Namespace, settings: Settings) -> Revocation:
    longest = settings.auth.longest_lifetime
    if options.all:
        return Revocation.of_everything(longest)
    if not (options.token_id or options.session or options.subject):
        raise InvalidInput("--token-id, --session and --subject must not be empty")
    require_no_token(options.token_id or options.session or options.subject, "what to revoke")
    if options.token_id:
        return Revocation.of_token(options.token_id, time.time() + longest)
    if options.session:
        return Revocation.of_session(options.session, longest)
    return Revocation.of_subject(options.subject, longest)


def audit(options: argparse.Namespace) -> None:
    """Print the newest entries of the audit trail."""
    if options.limit < 1:
        raise InvalidInput("--limit must be at least 1")
    with auth_database(options) as (database, _):
        rows = database.rows(
            "SELECT at, action, subject, address, target, detail FROM audit ORDER BY number DESC LIMIT ?",
            (options.limit,),
        )
    for row in reversed(rows):
        entry = AuditEntry(*row)
        print(json.dumps({**entry._asdict(), "at": timestamp(entry.at)}))
