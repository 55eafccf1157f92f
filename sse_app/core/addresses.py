"""Addresses of clients: read from text, and as limits count them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Protocol

CUSTOMER_PREFIX = 64
"""How many bits of an IPv6 address name its network: one customer, often one machine, has all addresses below."""

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

_REMEMBERED = 1024
"""How many addresses are remembered as they were read: each request reads some, again and again the same."""
_LONGEST_REMEMBERED = 64
"""How long a text is at most that is remembered: with a zone an address may be as long as a header."""

UNIX_SOCKET = "0.0.0.0"
"""Stands for the address of a client at the other end of a Unix socket, as with Tornado."""

_TRANSLATED = IPv6Network("64:ff9b::/96")
"""IPv4 addresses as a translator in front of an IPv6 network writes them (RFC 6052 §2.1)."""


class Network(Protocol):
    """What addresses belong to."""

    def __contains__(self, address: IPv4Address | IPv6Address, /) -> bool:
        """Return whether an address does."""


def parse_address(text: str) -> IPv4Address | IPv6Address:
    """Return an address; an IPv4 one that is mapped to IPv6 (RFC 4291 §2.5.5.2) as the IPv4 one.

    A zone is left out: it means something only on the machine that named it (RFC 4007 §6).

    Raises:
        ValueError: the text is not an IP address.
    """
    return _remembered(text) if len(text) <= _LONGEST_REMEMBERED else _parsed(text)


def _parsed(text: str) -> IPv4Address | IPv6Address:
    parsed = ip_address(text)
    if not isinstance(parsed, IPv6Address):
        return parsed
    return parsed.ipv4_mapped or (parsed if parsed.scope_id is None else IPv6Address(int(parsed)))


_remembered = lru_cache(_REMEMBERED)(_parsed)


def is_in(address: str, networks: Iterable[Network]) -> bool:
    """Return whether an address belongs to one of the networks; what is no address belongs to none."""
    try:
        parsed = parse_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


def network_of(address: str, prefix: int = CUSTOMER_PREFIX) -> str:
    """Return what counts as one address where clients are limited: an IPv4 address, or an IPv6 network.

    What is no address, such as that of a Unix socket, counts as it is written.

    Args:
        address: as the socket or `handlers.client_address` names it.
        prefix: how many bits an IPv6 network has in common.
    """
    return (_remembered_network if len(address) <= _LONGEST_REMEMBERED else _network)(address, prefix)


def interned(address: str) -> str:
    """Return an address as one object for all streams from it, where it counts for itself (see `network_of`)."""
    network = network_of(address)
    return network if network == address else address


def _network(address: str, prefix: int) -> str:
    try:
        parsed = parse_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed in _TRANSLATED:
            return str(IPv4Address(int(parsed) & 0xFFFFFFFF))
        host_bits = 128 - prefix
        return str(IPv6Address(int(parsed) >> host_bits << host_bits))
    return str(parsed)


_remembered_network = lru_cache(_REMEMBERED)(_network)
