"""Addresses that may be dialed from this machine for an account.

An account's operator writes the target, but the proxy's operator owns the network that the proxy dials from. Special
networks are therefore closed until the proxy's operator opens them for that account. An address is judged in the form
that the kernel or a translator will use: v4-mapped, SIIT, NAT64 and 6to4 forms are judged by the IPv4 address inside.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork

from netbird_proxy.api.model import AccountId, Address

IPAddress = IPv4Address | IPv6Address

# Closed unless an operator's entry names them. Private networks are not listed: a direct upstream exists to reach them.
# A local translator (RFC 8215) chooses the place of the IPv4 address by itself, and Teredo (in 2001::/23) embeds two
# of them, so both are closed as a whole.
_CLOSED: tuple[tuple[str, IPv4Network | IPv6Network], ...] = (
    ("unspecified", ip_network("0.0.0.0/8")),
    ("loopback", ip_network("127.0.0.0/8")),
    ("cloud metadata", ip_network("168.63.129.16/32")),
    ("link-local", ip_network("169.254.0.0/16")),
    ("cloud metadata", ip_network("100.100.100.200/32")),
    ("cloud metadata", ip_network("192.0.0.192/32")),
    ("for protocol assignments", ip_network("192.0.0.0/24")),
    ("a relay's", ip_network("192.88.99.0/24")),
    ("for benchmarks", ip_network("198.18.0.0/15")),
    ("multicast", ip_network("224.0.0.0/4")),
    ("reserved", ip_network("240.0.0.0/4")),
    ("unspecified", ip_network("::/128")),
    ("loopback", ip_network("::1/128")),
    ("a local translator's", ip_network("64:ff9b:1::/48")),
    ("discard-only", ip_network("100::/32")),
    ("for protocol assignments", ip_network("2001::/23")),
    ("for segment routing", ip_network("5f00::/16")),
    ("link-local", ip_network("fe80::/10")),
    ("site-local", ip_network("fec0::/10")),
    ("cloud metadata", ip_network("fd00:ec2::/32")),
    ("cloud metadata", ip_network("fd20:ce::254/128")),
    ("multicast", ip_network("ff00::/8")),
)

# NAT64 (RFC 6052) and SIIT (RFC 2765).
_LAST_32_BITS = (ip_network("64:ff9b::/96"), ip_network("::ffff:0:0:0/96"))
_COMPATIBLE = ip_network("::/96")


class AllowedNetworks(BaseModel):
    """An `allow` entry: networks that the proxy's operator opens to accounts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accounts: tuple[str, ...] = Field(min_length=1)
    """Ids of the accounts that the entry applies to, or `"*"` for all, and for services of `mappings_file`, which have
    no account."""
    networks: tuple[IPvAnyNetwork, ...] = Field(min_length=1)
    """Closed networks to open: loopback, link-local and special ones are closed by default, such as `127.0.0.1/32`;
    private networks are open without an entry."""
    ports: tuple[int, ...] = ()
    """Ports that the entry opens; an empty list opens all."""

    def covers(self, account: str, address: IPAddress, port: int) -> bool:
        return (
            ("*" in self.accounts or account in self.accounts)
            and (not self.ports or port in self.ports)
            and any(address.version == network.version and address in network for network in self.networks)
        )


class NetworkOptions(BaseModel):
    """Base of a plugin's options in which the operator opens networks. An entry applies to every dialer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow: tuple[AllowedNetworks, ...] = ()


def reached(text: str) -> IPAddress:
    """The address that a connection to this literal would reach, in every notation. ValueError for anything else.

    A zone (`fe80::1%eth0`) is dropped: link-local addresses are judged as a whole.
    """
    address = ip_address(text.split("%", 1)[0])
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if any(address in network for network in _LAST_32_BITS):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _COMPATIBLE and int(address) > 1:
        return IPv4Address(int(address))
    return address


class AddressRules:
    """The operator's rules on the addresses that may be dialed from this machine.

    Args:
        sections: plugins' options; the entries of each `NetworkOptions` among them count.
        listening: returns the addresses and ports that this process listens on, called at each judgement; `0.0.0.0`
            and `::` stand for every local address. No entry opens them: the proxy must not be made to call itself.
    """

    def __init__(self, sections: Iterable[object], listening: Callable[[], Iterable[Address]]) -> None:
        options = [section for section in sections if isinstance(section, NetworkOptions)]
        # Default entries are a plugin's own; only entries that the operator wrote count.
        self._entries = [entry for each in options if "allow" in each.model_fields_set for entry in each.allow]
        self._listening = listening

    def refusal(self, account: AccountId, host: str, port: int) -> str:
        """The reason why an address may not be dialed for an account, or "" if it may.

        A DNS name gets "": the addresses that it resolves to are judged when they are dialed.
        """
        try:
            address = reached(host)
        except ValueError:
            return ""
        if self._is_own(address, port):
            return f"{host}:{port} is one of this proxy's own listeners"
        if any(entry.covers(account, address, port) for entry in self._entries):
            return ""
        for kind, network in _CLOSED:
            if address.version == network.version and address in network:
                return f"{host} is {kind}: the proxy's operator has not allowed it for this account"
        return ""

    def _is_own(self, address: IPAddress, port: int) -> bool:
        own = [listening.host for listening in self._listening() if listening.port == port]
        return bool(own) and (
            address in [reached(host) for host in own] or address.is_unspecified or _is_local(address)
        )


@dataclass(frozen=True, slots=True)
class AddressJudge:
    """The rules as they apply to one account."""

    rules: AddressRules
    account: AccountId

    def refusal(self, host: str, port: int) -> str:
        """See `AddressRules.refusal`."""
        return self.rules.refusal(self.account, host, port)


def _is_local(address: IPAddress) -> bool:
    """True for an address of this machine: only such an address can be bound. Sends nothing."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


__all__ = ["AllowedNetworks", "NetworkOptions"]
