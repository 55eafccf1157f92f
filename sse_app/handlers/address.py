"""Where a request comes from when reverse proxies stand in between."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

Networks = Sequence[IPv4Network | IPv6Network]


def is_trusted(address: str, trusted: Networks) -> bool:
    """Return whether an address is that of a trusted proxy."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in trusted)


def client_address(peer: str, forwarded: Sequence[str], trusted: Networks) -> str:
    """Return the address of the client behind trusted proxies.

    Each proxy adds to the right whom it heard it from; so the first from the right that is no trusted proxy
    is the client, and what stands left of it is only what the client claims.

    Args:
        peer: the connection's other end.
        forwarded: the ``X-Forwarded-For`` headers.
        trusted: the networks of the proxies.
    """
    address = peer
    for claimed in reversed(",".join(forwarded).split(",")):
        if not is_trusted(address, trusted):
            break
        try:
            address = str(ip_address(claimed.strip()))
        except ValueError:
            break  # a proxy that says something else is believed no further
    return address
