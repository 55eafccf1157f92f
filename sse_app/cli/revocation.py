"""``revoke`` and ``audit``: take tokens back, and see what was done; beside a running server or without one."""

from __future__ import annotations

import argparse
import asyncio
import json

from sse_app.auth.records import AuditEntry, Revocation, require_no_token
from sse_app.cli.auth_store import auth_store, note
from sse_app.core.errors import InvalidInput
from sse_app.core.events import timestamp


def revoke(options: argparse.Namespace) -> None:
    """Revoke tokens."""
    asyncio.run(_revoke(options))


async def _revoke(options: argparse.Namespace) -> None:
    async with auth_store(options) as (store, _):
        revocation = _revocation(options)
        await store.revoke([revocation])
        await note(store, "revocation", revocation.value, revocation.scope.value)


def _revocation(options: argparse.Namespace) -> Revocation:
    if options.all:
        return Revocation.of_everything()
    if not (options.token_id or options.session or options.subject):
        raise InvalidInput("--token-id, --session and --subject must not be empty")
    require_no_token(options.token_id or options.session or options.subject, "what to revoke")
    if options.token_id:
        return Revocation.of_token(options.token_id)
    if options.session:
        return Revocation.of_session(options.session)
    return Revocation.of_subject(options.subject)


def audit(options: argparse.Namespace) -> None:
    """Print the newest entries of the audit trail."""
    if options.limit < 1:
        raise InvalidInput("--limit must be at least 1")
    for entry in reversed(asyncio.run(_newest(options))):
        print(json.dumps({**entry._asdict(), "at": timestamp(entry.at)}))


async def _newest(options: argparse.Namespace) -> list[AuditEntry]:
    async with auth_store(options) as (store, _):
        return [entry for _, entry in await store.audit_entries(options.limit)]
