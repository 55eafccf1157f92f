"""Tokens after login: narrowed, looked at, renewed; and the public keys that verify them."""

from __future__ import annotations

from sse_app.auth.accounts.login import names_granted
from sse_app.auth.tokens.claims import Claims
from sse_app.auth.tokens.issuer import LEAST_LIFETIME, TokenKind
from sse_app.auth.tokens.keyring import public_jwk
from sse_app.core.channels import channel_or_pattern_in
from sse_app.core.errors import InvalidInput, TokenRefused
from sse_app.handlers.base import ApiHandler, BodyHandler
from sse_app.handlers.errors import Refusal
from sse_app.streams.publisher import refuse_unknown


class StreamTokenHandler(BodyHandler):
    """``POST /api/v1/auth/stream-token``: from an access token to one that may stand in a URL."""

    async def post(self) -> None:
        """Answer with a stream token, narrowed to the channels and patterns named."""
        claims = await self._claims()
        self.node.tokens.require_not_kicked(claims)
        body = self.body()
        request = self.json_object(body) if body else {}
        refuse_unknown(request, ("channels",))
        channels = self._channels(request["channels"]) if "channels" in request else None
        if channels is not None:
            channels = self._granted(claims, channels)
        token, lifetime = self.node.login.stream_token(claims, channels)
        self.write_json({"stream_token": token, "stream_expires_in": lifetime})

    async def _claims(self) -> Claims:
        """Return the claims of the access token, which this server or the OpenID provider has issued."""
        provider = self.node.provider
        token = self.bearer_token()
        if provider is None or not provider.issued(token):
            return self.access_claims()
        self.claims = await provider.verify(token)
        self.node.tokens.require_in_force(self.claims)
        return self.claims

    def _granted(self, claims: Claims, channels: list[str]) -> list[str]:
        """Return the channels without those that are public and not granted: no token need say that they may be read.

        Raises:
            Forbidden: one is neither.
        """
        granted = []
        for channel in channels:
            if claims.grants.may_subscribe(channel) or not self.node.publisher.is_public(channel):
                claims.grants.require_subscribe(channel)
                granted.append(channel)
        return granted

    def _channels(self, value: object) -> list[str]:
        limit = self.node.settings.limits.channels_per_stream
        if not isinstance(value, list) or not 1 <= len(value) <= limit:
            raise InvalidInput(f"channels must be a list of 1 to {limit} channel names", "channels")
        return [channel_or_pattern_in(name, f"channels[{number}]") for number, name in enumerate(value)]


class MeHandler(ApiHandler):
    """``GET /api/v1/auth/me``."""

    def get(self) -> None:
        """Answer with the claims of the access token."""
        claims = self.access_claims()
        self.write_json(
            {
                "subject": claims.subject,
                "session": claims.session,
                "expires_in": self.node.tokens.remaining(claims.expires_at, claims.issued_at),
                "channels": names_granted(self.node.channels, claims.grants),
                "grants": claims.grants.to_claim(),
            }
        )


class RenewHandler(ApiHandler):
    """``POST /api/v1/sse/connections/{client_id}/renew``: open streams continue with a fresh stream token."""

    async def post(self, client_id: str) -> None:
        """Renew the token's own streams with that client id, all or none."""
        claims = self.node.tokens.verify(self.bearer_token("stream_token"), TokenKind.STREAM)
        self.claims = claims
        expires_in = self.node.tokens.remaining(claims.expires_at, claims.issued_at)
        if expires_in < LEAST_LIFETIME:
            raise TokenRefused("the token is about to expire", "expires within a second")
        self.node.tokens.require_not_kicked(claims)
        renewed = await self.node.renewal.renew(client_id, claims)
        if not renewed.streams:
            raise Refusal(404, "unknown_connection", "this session has no open stream with that client_id")
        self.write_json(
            {
                "renewed": renewed.streams,
                "expires_in": expires_in,
                "complete": not renewed.missing,
                **self.node.cluster.naming_any(renewed.missing),
            }
        )


class KeySetHandler(ApiHandler):
    """``GET /.well-known/jwks.json``: the public keys (RFC 7517 §5); secrets are not among them."""

    def get(self) -> None:
        """Answer with the keys that other servers can verify the tokens with."""
        keys = [jwk for key in self.node.tokens.keys if (jwk := public_jwk(key)) is not None]
        self.set_header("Cache-Control", "public, max-age=300")
        self.write_json({"keys": keys})
