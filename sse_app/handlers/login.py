"""Login, and what a token says of its bearer."""

from __future__ import annotations

import logging
import time

from sse_app.auth.login import names_granted
from sse_app.auth.passwords import MAX_PASSWORD_LENGTH
from sse_app.channels import ChannelName, parse_channel
from sse_app.errors import InvalidInput
from sse_app.handlers.api import ApiHandler, BodyHandler, Refusal
from sse_app.publisher import refuse_unknown

log = logging.getLogger(__name__)


class LoginHandler(BodyHandler):
    """``POST /api/v1/auth/login``."""

    async def post(self) -> None:
        """Answer a right name and password with tokens, anything else in the same words and time."""
        request = self.json_object()
        refuse_unknown(request, {"username", "password", "cookie"})
        name, password = (self._text(request.get(field), field) for field in ("username", "password"))
        if not isinstance(request.get("cookie", True), bool):
            raise InvalidInput("cookie must be true or false", "cookie")
        session = await self.services.login.log_in(name, password)
        if session is None:
            log.warning("login_refused", extra={"user": name[:64], "address": self.address})
            raise Refusal(401, "invalid_credentials", "the user name or the password is wrong")
        log.info("login", extra={"subject": session.subject, "session": session.id, "address": self.address})
        lifetimes = self.services.login.lifetimes
        self.write_json(
            {
                "access_token": session.access_token,
                "stream_token": session.stream_token,
                "token_type": "Bearer",
                "expires_in": int(lifetimes.access),
                "stream_expires_in": int(lifetimes.stream),
                "channels": names_granted(self.services.channels, session.grants),
            }
        )

    def _text(self, value: object, field: str) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_PASSWORD_LENGTH:
            raise InvalidInput(f"{field} must be a text of 1 to {MAX_PASSWORD_LENGTH} characters", field)
        return value


class StreamTokenHandler(BodyHandler):
    """``POST /api/v1/auth/stream-token``: from an access token to one that may stand in a URL."""

    def post(self) -> None:
        """Answer with a stream token, narrowed to the channels named."""
        claims = self.access_claims()
        body = self.body()
        request = self.json_object(body) if body else {}
        refuse_unknown(request, {"channels"})
        channels = self._channels(request["channels"]) if "channels" in request else None
        for channel in channels or ():
            if not claims.grants.subscribe.matches(channel):
                raise Refusal(403, "forbidden", f"the token does not allow to subscribe to {channel}")
        token, lifetime = self.services.login.stream_token(claims, channels, time.time())
        self.write_json({"stream_token": token, "stream_expires_in": lifetime})

    def _channels(self, value: object) -> list[ChannelName]:
        limit = self.services.settings.limits.channels_per_stream
        if not isinstance(value, list) or not 1 <= len(value) <= limit:
            raise InvalidInput(f"channels must be a list of 1 to {limit} channel names", "channels")
        names = []
        for number, name in enumerate(value):
            if not isinstance(name, str):
                raise InvalidInput(f"channels[{number}] must be a channel name", f"channels[{number}]")
            try:
                names.append(parse_channel(name))
            except InvalidInput as error:
                raise InvalidInput(f"channels[{number}]: {error}", f"channels[{number}]") from None
        return names


class MeHandler(ApiHandler):
    """``GET /api/v1/auth/me``."""

    def get(self) -> None:
        """Answer with what the access token says."""
        claims = self.access_claims()
        self.write_json(
            {
                "subject": claims.subject,
                "session": claims.session,
                "expires_in": max(0, int(claims.expires_at - time.time())),
                "channels": names_granted(self.services.channels, claims.grants),
                "grants": claims.grants.to_claim(),
            }
        )
