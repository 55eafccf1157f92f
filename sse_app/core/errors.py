"""What can go wrong, as a small tree of exceptions; `sse_app.handlers.errors` turns them into HTTP."""

from __future__ import annotations

import errno
from collections.abc import Iterable

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Error numbers that say that there is no file descriptor, or no memory, just now."""


class SSEAppError(Exception):
    """The root of everything this package raises on purpose. Its text is a sentence fit for the caller."""


class SettingsError(SSEAppError):
    """A setting is unknown or has a bad value; the text is one line that names it."""


class StateError(SSEAppError):
    """The state directory or a database in it cannot be used; the text names it and says why."""


class NotStarted(SSEAppError):
    """A server that is mounted in another application is used before it was started."""


class InvalidInput(SSEAppError):
    """Something a client sent has the wrong form.

    Args:
        message: a sentence for the client.
        field: where it stands, e.g. ``events[3].event``; part of the sentence already.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidChannel(InvalidInput):
    """A text is no channel name, or no channel pattern."""


class InvalidRate(InvalidInput):
    """A stream asks for a rate that has no meaning for its channels."""


class UnknownUser(InvalidInput):
    """There is no account of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no user {name!a}")


class NameTaken(InvalidInput):
    """There is an account of that name already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"user {name} exists already")


class UnknownChannel(SSEAppError):
    """A channel has a good name, but no configured name or pattern covers it."""


class TokenRefused(SSEAppError):
    """A token is missing, malformed, forged, expired or of the wrong kind.

    The client gets the text and no more; ``detail`` is for the log and holds no part of the token.
    """

    def __init__(self, message: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail or message


class TokenTooLarge(SSEAppError):
    """A token was not issued because it would be too large to be used; the text says why, and the way out."""


class Forbidden(SSEAppError):
    """What was asked is not allowed: not to the token, although it is valid, to the address, or to the page."""


class Kicked(SSEAppError):
    """An administrator has kicked a stream of this session, which gets none for a while.

    Args:
        wait: for how many seconds.
    """

    def __init__(self, wait: float) -> None:
        super().__init__("an administrator has ended this session's streams: it gets none for a while")
        self.wait = wait


class NodeSilent(SSEAppError):
    """What was asked for may be with a node that does not answer just now.

    Args:
        noun: what a node is called, ``worker`` or ``node``.
        names: of those that do not answer.
    """

    def __init__(self, noun: str, names: Iterable[str]) -> None:
        super().__init__(f"{noun} {', '.join(names)} does not answer just now")
        self.noun = noun


class UnknownStream(SSEAppError):
    """There is no open stream of that number."""

    def __init__(self) -> None:
        super().__init__("there is no connection with that id")


class TooManyRenewals(SSEAppError):
    """A stream has been renewed with as many tokens as it may that are still in force; the text says how many."""


class TooManyStreams(SSEAppError):
    """A user or an address has as many streams open as it may; the text says which, and how many."""


class ProviderUnavailable(SSEAppError):
    """The OpenID provider's keys are not known and cannot be fetched just now."""


class TooManyPublishes(SSEAppError):
    """So much waits to be stored, or is still being received, that this is refused at once; nothing was stored."""

    def __init__(self) -> None:
        super().__init__("too much is being published just now")


class EventLogUnavailable(SSEAppError):
    """The event log cannot be read or written just now; nothing was stored."""


class OutcomeUnknown(EventLogUnavailable):
    """The event log has not answered: what it was to store may be there, or not."""


class AuthStoreUnavailable(SSEAppError):
    """Accounts, sessions, revocations and the audit trail cannot be read or written just now; nothing was changed.

    Args:
        detail: why, for the log.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(f"accounts and sessions cannot be read or written just now: {detail}")
        self.detail = detail


class IdempotencyKeyReused(SSEAppError):
    """An idempotency key came back with another body than it came with first."""
