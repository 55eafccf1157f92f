"""The types of settings that are neither numbers nor plain text: each checks its text when it is made."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Self

from sse_app.core.channels import ChannelPattern, is_internal
from sse_app.core.errors import InvalidChannel, InvalidInput
from sse_app.core.events import check_type

_HOST_NAME = re.compile(r"\*|(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_MAPPED = IPv6Network("::ffff:0:0/96")
"""IPv4 addresses as IPv6 sockets show them (RFC 4291 §2.5.5.2)."""


class _Pattern(str):
    """A channel pattern, in which ``{sub}`` may stand for a user's name.

    Raises:
        ValueError: the text is not a pattern.
    """

    def __new__(cls, text: str) -> Self:
        """Check the text."""
        try:
            ChannelPattern(text.replace("{sub}", "x"))
        except InvalidChannel as error:
            raise ValueError(str(error)) from None
        return super().__new__(cls, text)


class _ClientPattern(str):
    """A pattern of channels that are not the server's own.

    Raises:
        ValueError: the text is not such a pattern.
    """

    def __new__(cls, text: str) -> Self:
        """Check the text."""
        try:
            ChannelPattern(text)
        except InvalidChannel as error:
            raise ValueError(str(error)) from None
        if is_internal(text):
            raise ValueError("channels that begin with sse_app are the server's own")
        return super().__new__(cls, text)


class _EventType(str):
    """A type of events that can be published.

    Raises:
        ValueError: the text is none.
    """

    def __new__(cls, text: str) -> Self:
        """Check the text."""
        try:
            check_type(text, "an event type")
        except InvalidInput as error:
            raise ValueError(str(error)) from None
        return super().__new__(cls, text)


class _Origin(str):
    """An origin as browsers name it (RFC 6454 §6.2).

    Raises:
        ValueError: the text is not an origin.
    """

    def __new__(cls, text: str) -> Self:
        """Check the text."""
        scheme, separator, rest = text.partition("://")
        written = rest.isprintable() and not any(c in rest for c in "/?#*@ ")
        if not separator or scheme not in ("http", "https") or not rest or not written:
            raise ValueError("an origin is scheme://host[:port] without a path, e.g. http://localhost:3020")
        return super().__new__(cls, text)


POSTGRES_SCHEMES = ("postgresql://", "postgres://")
"""How the URL of a log on PostgreSQL begins, as libpq takes it."""


class _EventLogURL(str):
    """Where the event log is kept.

    Raises:
        ValueError: the text names no kind of event log that there is.
    """

    def __new__(cls, text: str) -> Self:
        """Check the text."""
        if text.startswith("redis:"):
            raise ValueError("Redis is not supported by this version; use 'postgresql://…' or 'sqlite:'")
        if text != "memory:" and not text.startswith(("sqlite:", *POSTGRES_SCHEMES)):
            raise ValueError("must be 'sqlite:', 'sqlite:/path/to/file', 'postgresql://…' or 'memory:'")
        return super().__new__(cls, text)


class _PostgresURL(str):
    """A database of PostgreSQL, or nothing.

    Raises:
        ValueError: the text is neither.
    """

    def __new__(cls, text: str) -> Self:
        """Check the text."""
        if text and not text.startswith(POSTGRES_SCHEMES):
            raise ValueError("must be 'postgresql://…'")
        return super().__new__(cls, text)


class _NodeName(str):
    """The name of a machine among those that share a log; empty for the host's.

    Raises:
        ValueError: it has other characters than those of a host name, or too many.
    """

    def __new__(cls, text: str) -> Self:
        """Check the text."""
        if text and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", text):
            raise ValueError(
                "must be up to 63 letters, digits, '-' and '_', and begin with a letter or a digit"
            )
        return super().__new__(cls, text)


class _HostName(str):
    """A name in the ``Host`` header, or a pattern of such names.

    Raises:
        ValueError: the text is neither.
    """

    def __new__(cls, text: str) -> Self:
        """Check the text."""
        if not _HOST_NAME.fullmatch(text):
            raise ValueError(
                "a host is a name without scheme and port, e.g. events.example.com; "
                "*.example.com is every name below, * is every name"
            )
        return super().__new__(cls, text.lower())


class Network:
    """An IPv4 or IPv6 network; one of IPv4 addresses that are mapped to IPv6 is the IPv4 network.

    Args:
        text: such as ``10.0.0.0/8``.

    Raises:
        ValueError: the text is not a network.
    """

    __slots__ = ("_network",)

    def __init__(self, text: str) -> None:
        network = ip_network(text)
        if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
            first = IPv4Address(int(network.network_address) & 0xFFFFFFFF)
            network = IPv4Network((first, network.prefixlen - _MAPPED.prefixlen))
        self._network = network

    def __contains__(self, address: IPv4Address | IPv6Address) -> bool:
        """Return whether an address belongs to it."""
        return address in self._network

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same network."""
        return isinstance(other, Network) and self._network == other._network

    def __hash__(self) -> int:
        """Return a hash that goes with equality."""
        return hash(self._network)

    def __str__(self) -> str:
        """Return the network as it is written."""
        return str(self._network)


if TYPE_CHECKING:  # a program that makes settings writes plain text
    Pattern = str
    ClientPattern = str
    EventType = str
    Origin = str
    EventLogURL = str
    HostName = str
    PostgresURL = str
    NodeName = str
else:
    Pattern, ClientPattern, EventType = _Pattern, _ClientPattern, _EventType
    Origin, EventLogURL = _Origin, _EventLogURL
    HostName, PostgresURL, NodeName = _HostName, _PostgresURL, _NodeName
