"""How the errors of this package are answered over HTTP."""

from __future__ import annotations

import asyncio
import math

from sse_app.auth.accounts.login import LoginThrottled
from sse_app.auth.accounts.passwords import TooManyLogins
from sse_app.auth.store import RefreshRefused
from sse_app.core.errors import (
    EXHAUSTED,
    AuthStoreUnavailable,
    EventLogUnavailable,
    Forbidden,
    IdempotencyKeyReused,
    InvalidChannel,
    InvalidInput,
    InvalidRate,
    Kicked,
    NameTaken,
    NodeSilent,
    OutcomeUnknown,
    ProviderUnavailable,
    SSEAppError,
    TokenRefused,
    TokenTooLarge,
    TooManyPublishes,
    TooManyRenewals,
    TooManyStreams,
    UnknownChannel,
    UnknownStream,
    UnknownUser,
)

RETRY_AFTER = "5"
"""Seconds after which a client that met a limit or an unavailable store may try again."""


class Refusal(SSEAppError):
    """A request is answered with an error.

    Args:
        status: the HTTP status.
        code: for programs.
        message: a sentence for people.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def refusal_of(error: BaseException | None) -> Refusal | None:
    """Return how an error of this package is answered over HTTP, or None for another: this one place decides."""
    match error:
        case Refusal():
            return error
        case asyncio.CancelledError():  # the process ends before it could answer
            return Refusal(503, "draining", "the server is shutting down", Retry_After=RETRY_AFTER)
        case InvalidChannel(field="channel" | "channels"):
            return Refusal(400, "invalid_channel", str(error))
        case InvalidRate():
            return Refusal(400, "invalid_rate", str(error))
        case UnknownUser():
            return Refusal(404, "unknown_user", str(error))
        case NameTaken():
            return Refusal(409, "name_taken", str(error))
        case InvalidInput():
            return Refusal(422, "invalid_input", str(error))
        case TokenRefused():
            return Refusal(401, "invalid_token", str(error), WWW_Authenticate='Bearer error="invalid_token"')
        case TokenTooLarge():
            return Refusal(422, "token_too_large", str(error))
        case Forbidden():
            return Refusal(403, "forbidden", str(error))
        case Kicked(wait=wait):
            return Refusal(403, "kicked", str(error), Retry_After=str(math.ceil(wait)))
        case TooManyStreams():
            return Refusal(429, "too_many_streams", str(error), Retry_After=RETRY_AFTER)
        case TooManyRenewals():
            return Refusal(429, "too_many_renewals", str(error), Retry_After=RETRY_AFTER)
        case NodeSilent(noun=noun):
            return Refusal(503, f"{noun}_silent", str(error), Retry_After=RETRY_AFTER)
        case UnknownStream():
            return Refusal(404, "unknown_connection", str(error))
        case UnknownChannel():
            return Refusal(404, "unknown_channel", str(error))
        case IdempotencyKeyReused():
            return Refusal(422, "idempotency_key_reused", str(error))
        case RefreshRefused():
            return Refusal(401, "invalid_token", str(error), WWW_Authenticate='Bearer error="invalid_token"')
        case LoginThrottled(wait=wait):
            return Refusal(429, "too_many_attempts", str(error), Retry_After=str(math.ceil(wait)))
        case TooManyLogins() | TooManyPublishes():
            return Refusal(503, "busy", str(error), Retry_After=RETRY_AFTER)
        case ProviderUnavailable():
            return Refusal(503, "provider_unavailable", str(error), Retry_After=RETRY_AFTER)
        case AuthStoreUnavailable():
            return Refusal(503, "unavailable", "this cannot be done just now", Retry_After=RETRY_AFTER)
        case OutcomeUnknown():
            message = "it may be stored: published again with the same Idempotency-Key, it is stored once"
            return Refusal(503, "outcome_unknown", message, Retry_After=RETRY_AFTER)
        case EventLogUnavailable():
            message = "the event log is not available just now"
            return Refusal(503, "log_unavailable", message, Retry_After=RETRY_AFTER)
        case OSError(errno=number) if number in EXHAUSTED:
            return Refusal(503, "busy", "the server is busy", Retry_After=RETRY_AFTER)
    return None
