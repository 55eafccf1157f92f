"""Administration: look at connections, kick, revoke, read live statistics and the audit trail."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson

from sse_app.auth.records import Revocation, require_no_token
from sse_app.core.errors import InvalidInput
from sse_app.core.events import timestamp
from sse_app.handlers.base import ApiHandler, BodyHandler
from sse_app.handlers.errors import Refusal
from sse_app.monitoring.connection_table import SEARCHED, SORTED, Query
from sse_app.streams.publisher import refuse_unknown

KICK_TIME = 300
"""For how many seconds a kick bars a session where it does not say."""
MAX_KICK_TIME = 30 * 86_400

AUDIT_LIMIT = 100
AUDIT_MAX = 1000
MAX_SEARCH = 255


class KickHandler(BodyHandler):
    """``/api/v1/admin/connections/{connection}/kick``."""

    async def get(self, connection: str) -> None:
        """Answer with how many streams a kick would end."""
        self.admin_claims()
        sharing = await self.node.kicks.sharing(int(connection))
        self.write_json({"streams": sharing.streams, **self.node.cluster.naming_any(sharing.missing)})

    async def post(self, connection: str) -> None:
        """End a connection and revoke its tokens, and bar its session: else its client would be back at once."""
        admin = self.admin_claims()
        seconds = self._seconds()
        kicked = await self.node.kicks.kick(int(connection), seconds)
        self.node.audit.record(
            "kick",
            subject=admin.subject,
            address=self.address,
            target=kicked.subject,
            detail=f"client_id {kicked.client_id} at {kicked.address}, for {seconds:g} s",
        )
        self.write_json({"kicked": kicked.streams, **self.node.cluster.naming_any(kicked.missing)})

    def _seconds(self) -> float:
        """Return for how long the session is barred, which the body may say."""
        body = self.body()
        request = self.json_object(body) if body else {}
        refuse_unknown(request, ("for",))
        seconds = request.get("for", KICK_TIME)
        if type(seconds) not in (int, float) or not 0 <= seconds <= MAX_KICK_TIME:
            raise InvalidInput(f"for must be a number of seconds from 0 to {MAX_KICK_TIME}", "for")
        return float(seconds)


class RevocationsHandler(BodyHandler):
    """``POST /api/v1/admin/revocations``."""

    async def post(self) -> None:
        """Revoke a token, a session, a subject's tokens or all tokens issued until now."""
        admin = self.admin_claims()
        revocation = self._revocation(self.json_object())
        ended = await self.node.enforcement.revoke(revocation)
        self.node.audit.record(
            "revocation",
            subject=admin.subject,
            address=self.address,
            target=revocation.value,
            detail=revocation.scope.value,
        )
        answer = {"scope": revocation.scope.value, "value": revocation.value, "streams": ended.streams}
        self.write_json({**answer, **self.node.cluster.naming_any(ended.missing)}, 201)

    def _revocation(self, request: dict[str, Any]) -> Revocation:
        refuse_unknown(request, ("token_id", "session", "subject", "all"))
        if len(request) != 1:
            raise InvalidInput("name one of token_id, session, subject, or all")
        ((scope, value),) = request.items()
        if scope == "all":
            if value is not True:
                raise InvalidInput("all must be true", "all")
            return Revocation.of_everything()
        if not isinstance(value, str) or not 1 <= len(value) <= 1024:
            raise InvalidInput(f"{scope} must be a text of 1 to 1024 characters", scope)
        require_no_token(value, scope)
        match scope:
            case "token_id":
                return Revocation.of_token(value)
            case "session":
                return Revocation.of_session(value)
        return Revocation.of_subject(value)


class ConnectionsHandler(ApiHandler):
    """``GET /api/v1/admin/connections``."""

    async def get(self) -> None:
        """Answer with a page of the open streams that match the search, sorted by one of the columns."""
        self.admin_claims()
        query = Query(
            search=self._search(),
            field=self._one_of("field", SEARCHED, ""),
            sort=self._one_of("sort", SORTED, "connection"),
            descending=self._one_of("order", ("asc", "desc"), "asc") == "desc",
            offset=self.number("offset", 0, 0, 10**9),
            limit=self.number("limit", 100, 1, 1000),
        )
        page = await self.node.connections.page(query)
        answer: dict[str, Any] = {"total": page.total, "connections": page.rows}
        self.write_json(answer | self.node.cluster.naming(page.missing))

    def _search(self) -> str:
        text = self.get_query_argument("search", "", strip=False)
        if len(text) > MAX_SEARCH:
            raise Refusal(400, "invalid_search", f"search must have at most {MAX_SEARCH} characters")
        return text

    def _one_of(self, name: str, known: Collection[str], default: str) -> str:
        """Return a word of the query.

        Raises:
            Refusal: it is not among those known.
        """
        text = self.get_query_argument(name, None, strip=False)
        if text is None:
            return default
        if text not in known:
            raise Refusal(400, f"invalid_{name}", f"{name} must be one of {', '.join(known)}")
        return text


class FiguresHandler(ApiHandler):
    """``GET /api/v1/admin/figures``."""

    def get(self) -> None:
        """Answer with the figures of the last minutes; the admin channel continues them."""
        self.admin_claims()
        self.write_json({"figures": [orjson.Fragment(each) for each in self.node.live_stats.recent]})


class AuditHandler(ApiHandler):
    """``GET /api/v1/admin/audit``."""

    async def get(self) -> None:
        """Answer with the newest entries, newest first; ``before`` asks for older ones."""
        self.admin_claims()
        limit = self.number("limit", AUDIT_LIMIT, 1, AUDIT_MAX)
        before = self.number("before", 2**53, 1, 2**53)
        entries = await self.node.audit.entries(limit, before)
        self.write_json(
            {
                "entries": [
                    {"number": number, **entry._asdict(), "at": timestamp(entry.at)}
                    for number, entry in entries
                ]
            }
        )
