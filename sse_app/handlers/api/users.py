"""The accounts of this server: administrators list, make and change them, by the rules of the command ``user``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from sse_app.auth.accounts.accounts import check_changes
from sse_app.auth.records import Account
from sse_app.auth.tokens.claims import Claims
from sse_app.auth.tokens.grants import Grants
from sse_app.core.channels import ChannelPattern
from sse_app.core.errors import InvalidChannel, InvalidInput, UnknownUser
from sse_app.handlers.base import BodyHandler
from sse_app.handlers.errors import Refusal
from sse_app.streams.publisher import refuse_unknown

MAX_SEARCH = 255

_GRANTED = ("subscribe", "publish", "presence")


class _Step(NamedTuple):
    """One change of an account, as the audit trail names it."""

    action: str
    work: Callable[[], Awaitable[None]]
    detail: str = ""


class _AccountsHandler(BodyHandler):
    """What both handlers of accounts need."""

    def note(self, admin: Claims, action: str, name: str, detail: str = "") -> None:
        """Have the audit trail say what an administrator has done to an account."""
        self.node.audit.record(
            action, subject=admin.subject, address=self.address, target=name, detail=detail
        )

    def changed(self, account: Account) -> dict[str, Any]:
        """Return the answer to a change: the account, and which of its patterns cover no channel there is."""
        grants = account.grants
        patterns = dict.fromkeys((*grants.subscribe.texts, *grants.publish.texts, *grants.presence.texts))
        channels = self.node.channels
        return _described(account) | {
            "uncovered": [text for text in patterns if not channels.overlapping(ChannelPattern(text))]
        }


class UsersHandler(_AccountsHandler):
    """``/api/v1/admin/users``."""

    async def get(self) -> None:
        """Answer with a page of the accounts with a text in their names, by name."""
        self.admin_claims()
        search = self.get_query_argument("search", "", strip=False)
        if len(search) > MAX_SEARCH:
            raise Refusal(400, "invalid_search", f"search must have at most {MAX_SEARCH} characters")
        offset, limit = self.number("offset", 0, 0, 10**9), self.number("limit", 100, 1, 1000)
        total, accounts = await self.node.accounts.page(search, offset, limit)
        self.write_json({"total": total, "users": [_described(account) for account in accounts]})

    async def post(self) -> None:
        """Make an account."""
        admin = self.admin_claims()
        request = self.json_object()
        refuse_unknown(request, ("name", "password", "grants"))
        name, password = (_text(request.get(field), field) for field in ("name", "password"))
        grants = _grants(request.get("grants", {}))
        await self.node.accounts.add(name, password, grants)
        self.note(admin, "user_added", name, grants.in_words())
        self.write_json(self.changed(Account(name, grants, disabled=False)), 201)


class UserHandler(_AccountsHandler):
    """``/api/v1/admin/users/{name}``."""

    async def get(self, name: str) -> None:
        """Answer with an account."""
        self.admin_claims()
        self.write_json(_described(await self._account(name)))

    async def patch(self, name: str) -> None:
        """Change an account; what is so already is left alone, and ends nothing.

        Each member is a change of its own, and the order is such that nothing is allowed too early: disabling comes
        first, enabling last. Where the accounts cannot be written in between, the same request does the rest.
        """
        admin = self.admin_claims()
        request = self.json_object()
        refuse_unknown(request, ("disabled", "password", "grants", "own_account"))
        disabled = _flag(request, "disabled")
        password = _text(request["password"], "password") if "password" in request else None
        grants = _grants(request["grants"]) if "grants" in request else None
        own_account = _flag(request, "own_account")
        if not request:
            raise InvalidInput("name what to change: disabled, password or grants")
        check_changes(name, password, grants, self.node.settings.auth)
        account = await self._account(name)
        if name == admin.subject and not own_account:
            self._warn_of_own(account, disabled, grants)
        try:
            for step in self._steps(account, disabled, password, grants):
                await step.work()
                self.note(admin, step.action, name, step.detail)
        finally:
            await self.node.enforcement.apply_everywhere()
        self.write_json(self.changed(await self._account(name)))

    async def _account(self, name: str) -> Account:
        account = await self.node.accounts.find(name)
        if account is None:
            raise UnknownUser(name)
        return account

    def _steps(
        self, account: Account, disabled: bool | None, password: str | None, grants: Grants | None
    ) -> list[_Step]:
        """Return what is to be done, in its order."""
        accounts, name = self.node.accounts, account.name
        steps = []
        if disabled and not account.disabled:
            steps.append(_Step("user_disabled", lambda: accounts.disable(name)))
        if password is not None:
            steps.append(_Step("password_changed", lambda: accounts.set_password(name, password)))
        if grants is not None and grants != account.grants:
            steps.append(
                _Step("grants_changed", lambda: accounts.set_grants(name, grants), grants.in_words())
            )
        if disabled is False and account.disabled:
            steps.append(_Step("user_enabled", lambda: accounts.enable(name)))
        return steps

    def _warn_of_own(self, account: Account, disabled: bool | None, grants: Grants | None) -> None:
        """Refuse to take administration from the account that asks, unless it says that this is meant.

        Raises:
            Refusal: it would be taken.
        """
        demoted = grants is not None and account.grants.admin and not grants.admin
        if disabled or demoted:
            done = "disable" if disabled else "take administration from"
            raise Refusal(
                409,
                "own_account",
                f'this would {done} your own account; add "own_account": true if that is what you want',
            )


def _described(account: Account) -> dict[str, Any]:
    grants = {"presence": [], **account.grants.to_claim()}
    return {"name": account.name, "disabled": account.disabled, "grants": grants}


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{field} must be a text", field)
    return value


def _flag(request: dict[str, Any], field: str) -> bool | None:
    """Return a member that is true or false; None where it is absent."""
    value = request.get(field)
    if field in request and not isinstance(value, bool):
        raise InvalidInput(f"{field} must be true or false", field)
    return value


def _grants(value: object) -> Grants:
    """Return the grants that a request names; what it leaves out is not granted.

    Raises:
        InvalidInput: they have another form.
    """
    if not isinstance(value, dict):
        raise InvalidInput("grants must be an object", "grants")
    refuse_unknown(value, (*_GRANTED, "admin"), "grants.")
    for name in _GRANTED:
        texts = value.get(name, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InvalidInput(f"grants.{name} must be a list of patterns", f"grants.{name}")
    admin = value.get("admin", False)
    if not isinstance(admin, bool):
        raise InvalidInput("grants.admin must be true or false", "grants.admin")
    try:
        return Grants.of(
            value.get("subscribe", []), value.get("publish", []), admin, value.get("presence", [])
        )
    except InvalidChannel as error:
        raise InvalidInput(f"grants: {error}", "grants") from None
