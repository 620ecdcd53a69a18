"""Which addresses a direct upstream may have.

An account's operator writes the target; the proxy's operator owns the network that it would be dialed from. So whatever
is special about that network is closed until its owner opens it for that account, and an address is judged in the form
that the kernel will use: v4-mapped, NAT64 and 6to4 forms are judged by the IPv4 address inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

CLOSED: tuple[tuple[str, IPNetwork], ...] = (
    ("unspecified", ip_network("0.0.0.0/8")),
    ("loopback", ip_network("127.0.0.0/8")),
    ("link-local", ip_network("169.254.0.0/16")),
    ("cloud metadata", ip_network("100.100.100.200/32")),
    ("cloud metadata", ip_network("192.0.0.192/32")),
    ("multicast", ip_network("224.0.0.0/4")),
    ("reserved", ip_network("240.0.0.0/4")),
    ("unspecified", ip_network("::/128")),
    ("loopback", ip_network("::1/128")),
    ("link-local", ip_network("fe80::/10")),
    ("site-local", ip_network("fec0::/10")),
    ("cloud metadata", ip_network("fd00:ec2::/32")),
    ("cloud metadata", ip_network("fd20:ce::254/128")),
    ("multicast", ip_network("ff00::/8")),
)
"""Closed unless an allow entry names them. Private networks are not here: reaching them is what the flag is for."""

_NAT64 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))
_COMPATIBLE = ip_network("::/96")


@dataclass(frozen=True, slots=True)
class Allowed:
    """One allow entry: for these accounts (`*` is all), these networks, on these ports (empty is all)."""

    accounts: tuple[str, ...]
    networks: tuple[IPNetwork, ...]
    ports: tuple[int, ...] = ()

    def covers(self, account: str, address: IPAddress, port: int) -> bool:
        return (
            ("*" in self.accounts or account in self.accounts)
            and (not self.ports or port in self.ports)
            and any(address.version == network.version and address in network for network in self.networks)
        )


def judged(text: str) -> IPAddress:
    """The address that would really be reached, whatever form it is written in. ValueError for what is no address.

    A zone (`fe80::1%eth0`) is no part of it: link-local is judged as a whole.
    """
    address = ip_address(text.split("%", 1)[0])
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in _NAT64):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _COMPATIBLE and int(address) > 1:
        return IPv4Address(int(address))
    return address


def refusal(text: str, port: int, account: str, allowed: tuple[Allowed, ...], own: frozenset[tuple[str, int]]) -> str:
    """Why an address may not be dialed for an account, or "" if it may.

    Args:
        own: addresses and ports that this process listens on; `0.0.0.0` and `::` stand for every local address. No
            allow entry opens them: the proxy must not be made to call itself.
    """
    address = judged(text)
    if _is_own(address, port, own):
        return f"{text}:{port} is one of this proxy's own listeners"
    if any(entry.covers(account, address, port) for entry in allowed):
        return ""
    for kind, network in CLOSED:
        if address.version == network.version and address in network:
            return f"{text} is {kind}: the proxy's operator has not allowed it for this account"
    return ""


def _is_own(address: IPAddress, port: int, own: frozenset[tuple[str, int]]) -> bool:
    for host, own_port in own:
        if own_port != port:
            continue
        try:
            mine = judged(host)
        except ValueError:
            continue
        if mine.is_unspecified:
            # We cannot know every address of this machine, so a wildcard listener takes its port from all of loopback
            # and from each address that turns out to be ours; see `LocalAddresses` in proxy.py.
            if address.is_loopback or address.is_unspecified:
                return True
        elif mine == address:
            return True
    return False
