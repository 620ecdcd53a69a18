"""Addresses of clients: the unit that limits count, and the canonical text."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from netbird_host.sources import address_text, source_of, unmapped


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
        ("x:" * 200, ("x:" * 200)[:255]),
    ],
)
def test_whom_an_address_stands_for(address: str, source: str) -> None:
    """An IPv4 address counts by itself, an IPv6 address with its /64."""
    assert source_of(address) == source


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("::FFFF:7f00:1", "::ffff:127.0.0.1"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),
        ("::ffff:10.0.0.1%eth0", "::ffff:10.0.0.1%eth0"),
        ("64:ff9b::a00:1", "64:ff9b::a00:1"),
        ("2001:DB8:0:0::7", "2001:db8::7"),
    ],
)
def test_an_address_has_one_text_on_every_python(address: str, text: str) -> None:
    """The text of an address is the same on every Python, so that stored texts stay comparable."""
    assert address_text(ip_address(address)) == text


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::192.0.2.1", "::c000:201"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_only_a_mapped_address_is_unmapped(address: str, plain: str) -> None:
    """A v4-mapped address is read as its IPv4 address, and no other form is changed."""
    assert str(unmapped(ip_address(address))) == plain
