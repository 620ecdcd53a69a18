"""Addresses that may be dialed from this machine: closed in every form, opened by the proxy's operator alone."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_proxy.api.addresses import AddressRules, AllowedNetworks, NetworkOptions, reached
from netbird_proxy.api.model import AccountId, Address


def refusal(
    host: str, port: int = 8080, account: str = "acct", *, allow: AllowedNetworks | None = None, own: str = ""
) -> str:
    options = NetworkOptions(allow=(allow,)) if allow else NetworkOptions()
    listening = [Address(own, 443)] if own else []
    return AddressRules([options], lambda: listening).refusal(AccountId(account), host, port)


REGISTRIES = {
    # IANA's registry of special-purpose IPv4 addresses: block → an address of it → whether it is closed.
    "0.0.0.0/8": ("0.1.2.3", True),
    "0.0.0.0/32": ("0.0.0.0", True),
    "10.0.0.0/8": ("10.1.2.3", False),
    "100.64.0.0/10": ("100.64.0.9", False),
    "127.0.0.0/8": ("127.8.9.10", True),
    "169.254.0.0/16": ("169.254.169.254", True),
    "172.16.0.0/12": ("172.16.0.1", False),
    "192.0.0.0/24": ("192.0.0.1", True),
    "192.0.0.0/29": ("192.0.0.2", True),
    "192.0.0.8/32": ("192.0.0.8", True),
    "192.0.0.9/32": ("192.0.0.9", True),
    "192.0.0.10/32": ("192.0.0.10", True),
    "192.0.0.170/32": ("192.0.0.170", True),
    "192.0.0.171/32": ("192.0.0.171", True),
    "192.0.2.0/24": ("192.0.2.10", False),
    "192.31.196.0/24": ("192.31.196.1", False),
    "192.52.193.0/24": ("192.52.193.1", False),
    "192.88.99.0/24": ("192.88.99.1", True),
    "192.88.99.2/32": ("192.88.99.2", True),
    "192.168.0.0/16": ("192.168.1.20", False),
    "192.175.48.0/24": ("192.175.48.1", False),
    "198.18.0.0/15": ("198.19.255.1", True),
    "198.51.100.0/24": ("198.51.100.1", False),
    "203.0.113.0/24": ("203.0.113.1", False),
    "224.0.0.0/4": ("239.1.2.3", True),
    "240.0.0.0/4": ("250.1.2.3", True),
    "255.255.255.255/32": ("255.255.255.255", True),
    # The same of IPv6.
    "::1/128": ("::1", True),
    "::/128": ("::", True),
    "::ffff:0:0/96": ("::ffff:127.0.0.1", True),
    "64:ff9b::/96": ("64:ff9b::a9fe:a9fe", True),
    "64:ff9b:1::/48": ("64:ff9b:1:a9fe:a9:fe00:808:808", True),
    "100::/64": ("100::1", True),
    "100:0:0:1::/64": ("100:0:0:1::1", True),
    "2001::/23": ("2001:1ff::1", True),
    "2001::/32": ("2001:0:4136:e378:8000:63bf:3fff:fdd2", True),
    "2001:1::1/128": ("2001:1::1", True),
    "2001:1::2/128": ("2001:1::2", True),
    "2001:1::3/128": ("2001:1::3", True),
    "2001:2::/48": ("2001:2::1", True),
    "2001:3::/32": ("2001:3::1", True),
    "2001:4:112::/48": ("2001:4:112::1", True),
    "2001:10::/28": ("2001:10::1", True),
    "2001:20::/28": ("2001:20::1", True),
    "2001:30::/28": ("2001:30::1", True),
    "2001:db8::/32": ("2001:db8::1", False),
    "2002::/16": ("2002:7f00:1::", True),
    "2620:4f:8000::/48": ("2620:4f:8000::1", False),
    "3fff::/20": ("3fff::1", False),
    "5f00::/16": ("5f00::1", True),
    "fc00::/7": ("fd12:3456::1", False),
    "fe80::/10": ("fe80::1", True),
}


@pytest.mark.parametrize("block", REGISTRIES)
def test_promise_6_every_special_purpose_block_is_decided(block: str) -> None:
    """Each block of the two registries is closed, or open on purpose: private, documentation, ordinary anycast."""
    address, closed = REGISTRIES[block]
    assert ip_address(address) in ip_network(block)
    assert bool(refusal(address)) is closed


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
    "64:ff9b:1:a9fe:a9:fe00:808:808",
    "2002:7f00:1::",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "::ffff:0:169.254.169.254",
    "168.63.129.16",
    "::ffff:168.63.129.16",
]


@pytest.mark.parametrize("address", CLOSED)
def test_promise_6_special_addresses_are_closed_in_every_form(address: str) -> None:
    """Loopback, link-local, metadata, unspecified and what maps to them need the operator's word."""
    assert refusal(address)


@pytest.mark.parametrize("address", ["192.0.2.10", "10.1.2.3", "192.168.1.20", "2001:db8::1", "fd12:3456::1"])
def test_ordinary_addresses_are_open(address: str) -> None:
    """Reaching the proxy's own networks is what the flag is for."""
    assert refusal(address) == ""


def test_promise_6_allow_entry_opens_its_network_for_its_account_and_ports_only() -> None:
    """What is allowed to one account stays closed to others, and on other ports."""
    entry = AllowedNetworks(accounts=("acct",), networks=(ip_network("127.0.0.1/32"),), ports=(8080,))

    assert refusal("127.0.0.1", allow=entry) == ""
    assert refusal("::ffff:127.0.0.1", allow=entry) == ""
    assert "loopback" in refusal("127.0.0.1", 8081, allow=entry)
    assert "loopback" in refusal("127.0.0.1", account="other", allow=entry)
    assert "loopback" in refusal("127.0.0.9", allow=entry)


def test_promise_6_only_entries_that_the_operator_wrote_open_a_network() -> None:
    """A plugin that gives its options an entry by default opens nothing."""

    class Generous(NetworkOptions):
        allow: tuple[AllowedNetworks, ...] = (AllowedNetworks(accounts=("*",), networks=(ip_network("::/0"),)),)

    assert "loopback" in AddressRules([Generous()], lambda: ()).refusal(AccountId("acct"), "::1", 80)


@pytest.mark.parametrize("listener", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_promise_6_own_listeners_stay_closed_whatever_is_allowed(listener: str) -> None:
    """No allow entry makes the proxy call itself."""
    entry = AllowedNetworks(accounts=("*",), networks=(ip_network("0.0.0.0/0"), ip_network("::/0")))

    assert "own listeners" in refusal("127.0.0.1", 443, allow=entry, own=listener)
    assert refusal("127.0.0.1", 444, allow=entry, own=listener) == ""


def test_what_is_no_address_is_not_judged() -> None:
    """Names are judged by what they resolve to, when they are dialed."""
    with pytest.raises(ValueError, match="does not appear"):
        reached("service.example")
    assert refusal("service.example") == ""


@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_promise_6_every_mapped_form_is_judged_as_the_address_inside(number: int) -> None:
    """No spelling of an IPv4 address is judged otherwise than the address itself."""
    plain = IPv4Address(number)
    mapped = [
        IPv6Address((0xFFFF << 32) | number),
        IPv6Address((0x64FF9B << 96) | number),
        IPv6Address((0xFFFF << 48) | number),
        IPv6Address((0x2002 << 112) | (number << 80)),
    ]

    assert {reached(str(address)) for address in mapped} == {plain}
    assert {bool(refusal(str(address))) for address in (plain, *mapped)} == {bool(refusal(str(plain)))}
