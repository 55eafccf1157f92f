"""Login, refresh and logout: they begin, continue and end a session."""

from __future__ import annotations

from sse_app.auth.accounts.login import LoggedIn, names_granted
from sse_app.auth.accounts.passwords import MAX_PASSWORD_LENGTH
from sse_app.auth.store import RefreshRefused
from sse_app.core.errors import Forbidden, InvalidInput, TokenRefused
from sse_app.handlers import refresh_cookie
from sse_app.handlers.base import BodyHandler
from sse_app.handlers.errors import Refusal
from sse_app.handlers.parsing import cookie_values
from sse_app.streams.publisher import refuse_unknown

_NO_REFRESH_TOKEN = 'this takes a refresh token, in the cookie or as {"refresh_token"} in the body'


class _SessionHandler(BodyHandler):
    """What the handlers of the refresh cookie share."""

    _cookies_to_set: tuple[str, ...] = ()

    def set_default_headers(self) -> None:
        """Set the cookies also in the answer to an error, for which all other headers are begun anew."""
        super().set_default_headers()
        for cookie in self._cookies_to_set:
            self.add_header("Set-Cookie", cookie)

    def prepare(self) -> None:
        """Refuse a POST from a page of an origin that is not configured: the browser would add the cookie."""
        super().prepare()
        if self.request.method == "POST" and (problem := self.cross_origin_problem()):
            raise Forbidden(problem)

    def check_trusted_origin(self, origin: str) -> bool:
        """Return whether the origin is among those configured."""
        return origin in self.node.settings.cors_origins

    def answer(self, logged_in: LoggedIn, cookie_name: str | None) -> None:
        """Answer with the tokens; the refresh token goes into the cookie of that name, or without one into the body."""
        session = logged_in.session
        tokens = {
            "access_token": logged_in.access_token,
            "stream_token": logged_in.stream_token,
            "token_type": "Bearer",
            "expires_in": logged_in.access_lifetime,
            "stream_expires_in": logged_in.stream_lifetime,
            "channels": names_granted(self.node.channels, logged_in.grants),
        }
        if cookie_name is not None:
            self._set_refresh_cookie(session.refresh_token, session.lifetime, cookie_name)
        else:
            tokens |= {"refresh_token": session.refresh_token, "refresh_expires_in": session.lifetime}
        self.write_json(tokens)

    def refresh_token(self, request: dict[str, object]) -> tuple[str | None, bool]:
        """Return the refresh token of the body or else of the cookie, and whether it was the cookie's.

        Of several cookies of one name none is taken, for one of them is another site's, and all are dropped.
        """
        token = request.get("refresh_token")
        if token is None:
            found = self._sent(self._cookie_name)
            if len(found) > 1:
                self.forget_cookies()
            return found[0] if len(found) == 1 else None, True
        if not isinstance(token, str):
            raise InvalidInput("refresh_token must be a text", "refresh_token")
        return token, False

    def optional_object(self) -> dict[str, object]:
        """Return the body as a JSON object with no member but ``refresh_token``; it may be absent."""
        body = self.body()
        request = self.json_object(body) if body else {}
        refuse_unknown(request, ("refresh_token",))
        return request

    def forget_cookies(self) -> None:
        """Have the browser drop the refresh cookies that it has sent, by either name."""
        for name in (refresh_cookie.PREFIXED, refresh_cookie.PLAIN):
            self._send_cookies(refresh_cookie.dropping(name, self._sent(name)))

    @property
    def _cookie_name(self) -> str:
        """The name that the cookie has come by, where that is one of those read here, else that it is set by."""
        if self._sent(refresh_cookie.PREFIXED):
            return refresh_cookie.PREFIXED
        return refresh_cookie.name_for(self.request.headers, self.request.host_name)

    def _sent(self, name: str) -> list[str]:
        return cookie_values(self.request.headers.get_list("Cookie"), name)

    def _set_refresh_cookie(self, value: str, max_age: int, name: str) -> None:
        self._send_cookies([refresh_cookie.set_as(name, value, max_age)])
        for other in (refresh_cookie.PREFIXED, refresh_cookie.PLAIN):
            found = self._sent(other)
            drop = refresh_cookie.dropping_elsewhere if other == name else refresh_cookie.dropping
            self._send_cookies(drop(other, found))

    def _send_cookies(self, cookies: list[str]) -> None:
        self._cookies_to_set += tuple(cookies)
        for cookie in cookies:
            self.add_header("Set-Cookie", cookie)


class LoginHandler(_SessionHandler):
    """``POST /api/v1/auth/login``."""

    async def post(self) -> None:
        """Answer a right name and password with tokens, anything else in the same words and time."""
        request = self.json_object()
        refuse_unknown(request, ("username", "password", "cookie"))
        name, password = (self._text(request.get(field), field) for field in ("username", "password"))
        with_cookie = request.get("cookie", True)
        if not isinstance(with_cookie, bool):
            raise InvalidInput("cookie must be true or false", "cookie")
        logged_in = await self.node.login.log_in(name, password, self.address)
        if logged_in is None:
            raise Refusal(401, "invalid_credentials", "the user name or the password is wrong")
        cookie_name = refresh_cookie.name_for(self.request.headers, self.request.host_name)
        self.answer(logged_in, cookie_name if with_cookie else None)

    def _text(self, value: object, field: str) -> str:
        if value is None:
            raise InvalidInput(f"{field} is missing", field)
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_PASSWORD_LENGTH:
            raise InvalidInput(f"{field} must be a text of 1 to {MAX_PASSWORD_LENGTH} characters", field)
        return value


class RefreshHandler(_SessionHandler):
    """``POST /api/v1/auth/refresh``."""

    async def post(self) -> None:
        """Spend a refresh token, and answer with fresh tokens and the next one, in cookie or body as it came."""
        token, from_cookie = self.refresh_token(self.optional_object())
        if not token:
            raise TokenRefused(_NO_REFRESH_TOKEN, "no refresh token")
        try:
            logged_in = await self.node.login.refresh(token, self.address)
        except RefreshRefused as error:
            if error.reason != "unknown":  # it has ended its session
                await self.node.enforcement.apply_everywhere()
            if from_cookie:
                self.forget_cookies()
            raise
        self.answer(logged_in, self._cookie_name if from_cookie else None)


class LogoutHandler(_SessionHandler):
    """``POST /api/v1/auth/logout``."""

    async def post(self) -> None:
        """End the session of the access token or the refresh token, with its tokens and its streams."""
        token, from_cookie = self.refresh_token(self.optional_object())
        sessions = set()
        if "Authorization" in self.request.headers:
            claims = self.access_claims()
            sessions.add((claims.session, claims.subject))
        if token and (found := await self.node.login.session_of(token)):
            sessions.add(found)
        if not sessions:
            if from_cookie and token:
                self.forget_cookies()
            raise TokenRefused("this takes an access token or a refresh token of a session", "no session")
        for session, subject in sessions:
            await self.node.login.log_out(session, subject, self.address)
        await self.node.enforcement.apply_everywhere()
        if not self._cookies_to_set:
            self.forget_cookies()
        self.set_status(204)
