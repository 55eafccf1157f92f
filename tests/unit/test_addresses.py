"""What counts as one address."""

from __future__ import annotations

import pytest

from sse_app.core.addresses import network_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:c000:207", "192.0.2.7"),
        ("64:ff9b::192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2::1", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::"),
        ("2001:DB8:0001:2::9", "2001:db8:1:2::"),
        ("2001:db8:1:3::1", "2001:db8:1:3::"),
        ("fe80::1%eth0", "fe80::"),
        ("::1", "::"),
        ("unknown", "unknown"),
        ("", ""),
        ("192.0.2.007", "192.0.2.007"),
    ],
)
def test_limits_count_an_ipv4_address_or_an_ipv6_64(address: str, network: str) -> None:
    assert network_of(address) == network


def test_a_wider_network_is_counted_where_it_is_asked_for() -> None:
    assert network_of("2001:db8:1:2::1", 48) == network_of("2001:db8:1:ffff::1", 48) == "2001:db8:1::"
    assert network_of("192.0.2.7", 48) == "192.0.2.7"
