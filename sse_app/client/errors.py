"""What the client raises, as a small tree of exceptions: pure, no I/O."""

from __future__ import annotations

from sse_app.core.errors import SSEAppError


class ClientError(SSEAppError):
    """The root of what the client raises. Its text is a sentence for people and never holds a token."""


class Refused(ClientError):
    """The server will not do this, now or later.

    Args:
        message: the server's own words.
        status: the HTTP status.
        code: for programs, as in ``{"error": {"code"}}``; "" where the answer has none.
    """

    def __init__(self, message: str, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Unauthorized(Refused):
    """401: the token, or the name and password, are not valid; a fresh token was tried where there is one."""


class Forbidden(Refused):
    """403: the token is valid, but not for this."""


class NotFound(Refused):
    """404: there is no such channel."""


class Unavailable(ClientError):
    """Not just now: the server is away, or answers 429 or 5xx, or something else has answered. Later it may work.

    Args:
        message: what happened.
        retry_after: seconds that the server asks to wait, 0 where it does not say.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CertificateRefused(ClientError):
    """The certificate of the server does not prove that it is the one asked for; to try again would not help."""


class ProtocolError(ClientError):
    """The answer is not one that this server gives: another server or a proxy has answered."""


class StreamEnded(ClientError):
    """The server has ended the stream and does not want this client back.

    Args:
        reason: as in ``closing``: ``kicked``, for instance.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the server has ended the stream for good: {reason}")
        self.reason = reason


def kicked_or(refusal: Forbidden) -> Forbidden | StreamEnded:
    """Return the error that a 403 means to a stream: it has ended where an administrator has kicked its session."""
    return StreamEnded(refusal.code) if refusal.code == "kicked" else refusal
