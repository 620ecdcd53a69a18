"""Whom a client's address stands for."""

from __future__ import annotations

import pytest

from netbird_host.sources import source_of


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("", ""),
        ("nothing: really", "nothing: really"),
    ],
)
def test_whom_an_address_stands_for(address: str, source: str) -> None:
    """An IPv6 host has a whole network to come from."""
    assert source_of(address) == source
