"""The names that a server serves: which ``Host`` a request may have."""

from __future__ import annotations

from collections.abc import Iterable

from sse_app.core.addresses import parse_address


def is_local_name(name: str) -> bool:
    """Return whether a name is an IP address, or of this machine alone (RFC 6761 §6.3): no DNS server decides on it.

    Args:
        name: in lower case, without a port; an IPv6 address in brackets.
    """
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        parse_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def is_named(name: str, hosts: Iterable[str]) -> bool:
    """Return whether a name is among those configured, in lower case: ``*.example.com`` is every name below."""
    name = name.removesuffix(".")
    return any(host in (name, "*") or (host.startswith("*.") and name.endswith(host[1:])) for host in hosts)
