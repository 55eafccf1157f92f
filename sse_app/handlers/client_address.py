"""The address of the client that a request comes from, also behind reverse proxies."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from sse_app.settings.types import Network

Networks = Sequence[Network]


def parsed_address(address: str) -> IPv4Address | IPv6Address:
    """Return an address; an IPv4 one that is mapped to IPv6 (RFC 4291 §2.5.5.2) as the IPv4 one.

    Raises:
        ValueError: the text is not an IP address.
    """
    parsed = ip_address(address)
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else parsed


def is_in(address: str, networks: Networks) -> bool:
    """Return whether an address belongs to one of the networks, such as those of trusted proxies."""
    try:
        parsed = parsed_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


def client_address(peer: str, forwarded: Sequence[str], trusted: Networks) -> str:
    """Return the address of the client behind trusted proxies.

    Each proxy adds the address of its peer on the right. So the first from the right that is not a trusted
    proxy is the client, and what stands left of it is only what the client claims.

    Args:
        peer: the connection's other end.
        forwarded: the ``X-Forwarded-For`` headers.
        trusted: the networks of the proxies.
    """
    address = peer
    for claimed in reversed(",".join(forwarded).split(",")):
        if not is_in(address, trusted):
            break
        try:
            address = str(parsed_address(claimed.strip()))
        except ValueError:
            break  # what is not an address cannot be trusted, nor what stands left of it
    return address
