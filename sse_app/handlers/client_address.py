"""The address of the client that a request comes from, also behind reverse proxies."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sse_app.core.addresses import is_in, parse_address
from sse_app.settings.types import Network

UNKNOWN = "unknown"
"""Stands for an address that a proxy names in a form that is none: it is in no network, and has limits of its own."""

SIGNS_OF_A_PROXY = frozenset(
    {"X-Forwarded-For", "Forwarded", "X-Real-Ip", "Via", "X-Forwarded-Host", "X-Forwarded-Proto"}
)
"""Headers that a proxy adds, and that no client sends which asks directly; as `HTTPHeaders` writes their names."""

LONGEST_ELEMENT = 128
"""Characters of an address with brackets, zone and port; what is longer is not looked at, for that can take long."""

_WITH_PORT = re.compile(r"(?:\[([^\[\]]*:[^\[\]]*)\]|([0-9.]+)(?=:))(?::[0-9]{1,5})?")
"""An address as it stands before a port, as some proxies add one: an IPv6 address is in brackets (RFC 3986 §3.2.2)."""


def client_address(peer: str, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return the address of the client behind trusted proxies, or `UNKNOWN`.

    Each proxy adds the address of its peer on the right. So the first from the right that is not a trusted
    proxy is the client, and what stands left of it is only what the client claims.

    Args:
        peer: the connection's other end.
        forwarded: the ``X-Forwarded-For`` headers.
        trusted: the networks of the proxies.
    """
    address = peer
    for element in reversed(",".join(forwarded).split(",")):
        if not is_in(address, trusted):
            break
        address = _read(element.strip(" \t"))
    return address


def _read(element: str) -> str:
    """Return the address that an element of ``X-Forwarded-For`` names, without port, brackets and zone."""
    if len(element) > LONGEST_ELEMENT:
        return UNKNOWN
    if (match := _WITH_PORT.fullmatch(element)) is not None:
        element = match[1] or match[2]
    try:
        return str(parse_address(element))
    except ValueError:
        return UNKNOWN
