"""Which addresses a direct upstream may have: closed in every form, opened by the proxy's operator alone."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_direct_upstream.addresses import Allowed, judged, refusal

NOBODY: frozenset[tuple[str, int]] = frozenset()

CLOSED = [
    "127.0.0.1",
    "127.255.0.9",
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "100.100.100.200",
    "192.0.0.192",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "ff02::1",
    # The same places in forms that the kernel or a translator turns into them.
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::127.0.0.1",
    "2002:7f00:1::",
    "::127.0.0.1",
]


@pytest.mark.parametrize("address", CLOSED)
def test_promise_6_special_addresses_are_closed_in_every_form(address: str) -> None:
    """Loopback, link-local, metadata, unspecified and what maps to them need the operator's word."""
    assert refusal(address, 8080, "acct", (), NOBODY)


@pytest.mark.parametrize("address", ["192.0.2.10", "10.1.2.3", "192.168.1.20", "2001:db8::1", "fd12:3456::1"])
def test_ordinary_addresses_are_open(address: str) -> None:
    """Reaching the proxy's own networks is what the flag is for."""
    assert refusal(address, 8080, "acct", (), NOBODY) == ""


def test_promise_6_allow_entry_opens_its_network_for_its_account_and_ports_only() -> None:
    """What is allowed to one account stays closed to others, and on other ports."""
    allowed = (Allowed(("acct",), (ip_network("127.0.0.1/32"),), (8080,)),)

    assert refusal("127.0.0.1", 8080, "acct", allowed, NOBODY) == ""
    assert refusal("::ffff:127.0.0.1", 8080, "acct", allowed, NOBODY) == ""
    assert "loopback" in refusal("127.0.0.1", 8081, "acct", allowed, NOBODY)
    assert "loopback" in refusal("127.0.0.1", 8080, "other", allowed, NOBODY)
    assert "loopback" in refusal("127.0.0.9", 8080, "acct", allowed, NOBODY)


@pytest.mark.parametrize("listener", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_promise_6_own_listeners_stay_closed_whatever_is_allowed(listener: str) -> None:
    """No allow entry makes the proxy call itself."""
    allowed = (Allowed(("*",), (ip_network("0.0.0.0/0"), ip_network("::/0"))),)

    assert "own listeners" in refusal("127.0.0.1", 443, "acct", allowed, frozenset({(listener, 443)}))
    assert refusal("127.0.0.1", 444, "acct", allowed, frozenset({(listener, 443)})) == ""


def test_what_is_no_address_is_not_judged() -> None:
    """Names are judged by what they resolve to, when they are dialed."""
    with pytest.raises(ValueError, match="does not appear"):
        judged("service.example")


@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_promise_6_every_mapped_form_is_judged_as_the_address_inside(number: int) -> None:
    """No spelling of an IPv4 address is judged otherwise than the address itself."""
    plain = IPv4Address(number)
    mapped = [
        IPv6Address((0xFFFF << 32) | number),
        IPv6Address((0x64FF9B << 96) | number),
        IPv6Address((0x2002 << 112) | (number << 80)),
    ]

    assert {judged(str(address)) for address in mapped} == {plain}
    assert {bool(refusal(str(address), 80, "acct", (), NOBODY)) for address in (plain, *mapped)} == {
        bool(refusal(str(plain), 80, "acct", (), NOBODY))
    }
