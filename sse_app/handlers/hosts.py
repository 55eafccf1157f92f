"""The names that a server serves: which ``Host`` a request may have."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from sse_app.core.addresses import parse_address

MAX_NAME_LENGTH = 255
"""How many characters a name or an address has at most (RFC 1035 §2.3.4)."""


def is_local_name(name: str) -> bool:
    """Return whether a name is an IP address, or of this machine alone (RFC 6761 §6.3): no DNS server decides on it.

    Args:
        name: in lower case, without a port; an IPv6 address in brackets.
    """
    return len(name) <= MAX_NAME_LENGTH and _is_local(name)


@lru_cache(256)
def _is_local(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost") or _address_in(name) is not None


def is_loopback(name: str) -> bool:
    """Return whether a name is ``localhost`` or a loopback address; a name below ``localhost`` can have siblings.

    Args:
        name: in lower case, without a port; an IPv6 address in brackets.
    """
    address = _address_in(name)
    return name == "localhost" if address is None else address.is_loopback


def is_named(name: str, hosts: Iterable[str]) -> bool:
    """Return whether a name is among those configured, in lower case: ``*.example.com`` is every name below."""
    name = name.removesuffix(".")
    return any(host in (name, "*") or (host.startswith("*.") and name.endswith(host[1:])) for host in hosts)


def _address_in(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return parse_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
