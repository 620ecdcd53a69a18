"""Candidates: the lines in which peers exchange them, and the addresses of this machine."""

from __future__ import annotations

import re
import string
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, Literal, get_args

import ifaddr

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.errors import OverlayError
from netbird_overlay.members import plain_address

CandidateType = Literal["host", "srflx", "prflx", "relay"]
Network = IPv4Network | IPv6Network

TYPE_PREFERENCES: Final[dict[CandidateType, int]] = {"host": 126, "prflx": 110, "srflx": 100, "relay": 0}
"""RFC 8445 §5.1.2.2, with 0 for relays."""
FOREIGN_INTERFACES: Final = (
    *("wt0", "wt", "utun", "tun0", "zt", "ZeroTier", "wg", "ts", "Tailscale", "tailscale"),
    *("docker", "veth", "br-", "lo"),
)
"""Beginnings of the names of interfaces whose addresses are no candidates: NetBird's agents leave out the same."""
MAX_HOSTS: Final = 16
"""Most host candidates of one machine; the rest are left out."""
MAX_LINE: Final = 1024
_LETTERS: Final = string.ascii_letters
_TOKEN: Final = re.compile(r"[!-~]{1,64}")
_FOUNDATION: Final = re.compile(r"[A-Za-z0-9+/]{1,32}")
_NUMBER: Final = re.compile(r"[0-9]{1,10}")


class BadCandidate(OverlayError):
    """The line is no candidate, or none of the kind that this library uses: UDP, component 1, an IP literal."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address at which one side may be reached.

    Attributes:
        endpoint: the address; never a name, never with scope.
        priority: 1 to 2**31 - 1; the higher, the rather used.
        related: the address behind the NAT, for people who diagnose; None for hosts.
        ufrag: user name of the session that the candidate belongs to, or empty.
        cid: the side's own name of the candidate, or empty; goes into attribute 0x8100 of checks.
    """

    type: CandidateType
    endpoint: Endpoint
    priority: int
    foundation: str = "1"
    related: Endpoint | None = None
    ufrag: str = ""
    cid: str = ""


def priority(kind: CandidateType, local_preference: int = 65535) -> int:
    """Return the priority of RFC 8445 §5.1.2.1 for component 1."""
    return TYPE_PREFERENCES[kind] << 24 | local_preference << 8 | 255


def letters(count: int, random: Callable[[int], bytes]) -> str:
    """Return `count` unpredictable letters, for user names, passwords and candidate ids."""
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in random(count))


# Lines -----------------------------------------------------------------------------------------------------------


def format_candidate(candidate: Candidate) -> str:
    """Return the line that NetBird's agents expect, without the optional `candidate:`."""
    endpoint, related = candidate.endpoint, candidate.related
    line = f"{candidate.foundation} 1 udp {candidate.priority} {endpoint.host} {endpoint.port} typ {candidate.type}"
    if related is not None:
        line += f" raddr {related.host} rport {related.port}"
    if candidate.ufrag:
        line += f" ufrag {candidate.ufrag}"
    if candidate.cid:
        line += f" cid {candidate.cid}"
    return line


def parse_candidate(line: str) -> Candidate:
    """Return the candidate of a line. Unknown extensions are ignored.

    Raises:
        BadCandidate: for all that no agent of NetBird's sends, and for TCP, other components and host names.
    """
    if len(line) > MAX_LINE or not line.isascii():
        raise BadCandidate("a candidate longer than 1,024 characters, or not ASCII")
    words = line.removeprefix("candidate:").split(" ")
    if len(words) < 8 or len(words) % 2 or not all(map(_TOKEN.fullmatch, words)):
        raise BadCandidate("a candidate of missing, empty or too long words")
    foundation, component, transport, rank, host, port, typ, kind = words[:8]
    if component != "1" or transport.lower() != "udp" or typ != "typ":
        raise BadCandidate("a candidate that is not UDP, or of another component than 1")
    if kind not in get_args(CandidateType) or not _FOUNDATION.fullmatch(foundation):
        raise BadCandidate("a candidate of unknown type, or with a bad foundation")
    extensions: dict[str, str] = {}
    for key, value in zip(words[8::2], words[9::2], strict=True):
        extensions.setdefault(key, value)
    related = None
    if "raddr" in extensions or "rport" in extensions:
        related = _endpoint(extensions.get("raddr", ""), extensions.get("rport", ""), lowest_port=0)
    return Candidate(
        type=next(each for each in get_args(CandidateType) if each == kind),
        endpoint=_endpoint(host, port),
        priority=_number(rank, 1, 2**31 - 1),
        foundation=foundation,
        related=related,
        ufrag=extensions.get("ufrag", ""),
        cid=extensions.get("cid", ""),
    )


def with_forwarded_port(candidate: Candidate) -> list[Candidate]:
    """Return a remote candidate, and the second one that NetBird's agents derive from it, if there is one.

    The router of a server-reflexive candidate may forward the WireGuard port from outside under the same number.
    """
    related = candidate.related
    if candidate.type != "srflx" or not candidate.cid or related is None:
        return [candidate]
    if not related.port or related.port == candidate.endpoint.port:
        return [candidate]
    return [candidate, replace(candidate, endpoint=Endpoint(candidate.endpoint.host, related.port))]


def _number(text: str, lowest: int, highest: int) -> int:
    if not _NUMBER.fullmatch(text) or not lowest <= int(text) <= highest:
        raise BadCandidate("a number out of range")
    return int(text)


def _endpoint(host: str, port: str, *, lowest_port: int = 1) -> Endpoint:
    address = plain_address(host)
    if address is None:
        raise BadCandidate("a candidate whose address is no IP literal")
    return Endpoint(address, _number(port, lowest_port, 65535))


# Addresses -------------------------------------------------------------------------------------------------------


def is_usable(endpoint: Endpoint, *, excluded: Iterable[Network] = (), loopback: bool = False) -> bool:
    """Return True if checks may go to, and come from, this address.

    Excluded are the overlay's own networks (a path through the tunnel would carry itself), multicast, unspecified and
    link-local addresses without scope, port 0, and loopback addresses unless allowed: a peer must not have this
    machine's own services addressed.
    """
    address = ip_address(endpoint.host)
    if not endpoint.port or address.is_multicast or address.is_unspecified or (address.is_loopback and not loopback):
        return False
    if address == IPv4Address("255.255.255.255"):
        return False
    if isinstance(address, IPv6Address) and address.is_link_local and not endpoint.scope:
        return False
    return not any(address in network for network in excluded)


def gather_hosts(
    port: int,
    *,
    excluded: Sequence[Network] = (),
    cid: Callable[[], str] = str,
    ufrag: str = "",
    ipv4: bool = True,
    ipv6: bool = True,
    loopback: bool = False,
    adapters: Callable[[], Iterable[ifaddr.Adapter]] = ifaddr.get_adapters,
) -> list[Candidate]:
    """Return a host candidate for each address of this machine that other machines may reach.

    Args:
        port: the local port of the tunnel's socket.
        excluded: the overlay's networks.
        cid: returns an id for each candidate; by default none is sent.
        ipv4, ipv6: whether the socket can send to this family.
        loopback: add the loopback addresses, for tests.
        adapters: the machine's interfaces.
    """
    candidates: list[Candidate] = []
    for endpoint in dict.fromkeys(_addresses(adapters(), port, loopback)):
        version = ip_address(endpoint.host).version
        if not (ipv4 if version == 4 else ipv6) or len(candidates) == MAX_HOSTS:
            continue
        if is_usable(endpoint, excluded=excluded, loopback=loopback):
            preference = 65535 - len(candidates)
            candidates.append(
                Candidate(
                    "host", endpoint, priority("host", preference), _foundation("host", endpoint), None, ufrag, cid()
                )
            )
    return candidates


def server_reflexive(mapped: Endpoint, base: Endpoint, *, cid: str = "", ufrag: str = "") -> Candidate:
    """Return the candidate of an address that a STUN server reported; `base` is the socket's own."""
    return Candidate("srflx", mapped, priority("srflx"), _foundation("srflx", base), base, ufrag, cid)


def relayed(endpoint: Endpoint, *, cid: str = "", ufrag: str = "") -> Candidate:
    """Return the candidate of an address at a TURN server. It does not name the address behind, which helps nobody."""
    related = Endpoint("::" if ":" in endpoint.host else "0.0.0.0", 0)  # noqa: S104
    return Candidate("relay", endpoint, priority("relay"), _foundation("relay", endpoint), related, ufrag, cid)


def _addresses(adapters: Iterable[ifaddr.Adapter], port: int, loopback: bool) -> Iterable[Endpoint]:
    for adapter in adapters:
        for each in adapter.ips:
            address = plain_address(each.ip if isinstance(each.ip, str) else each.ip[0])
            if address is None:
                continue
            foreign = adapter.name.startswith(FOREIGN_INTERFACES)
            if loopback if ip_address(address).is_loopback else not foreign:
                yield Endpoint(address, port)


def _foundation(kind: CandidateType, base: Endpoint) -> str:
    """Return the same text for candidates of the same type and base address (RFC 8445 §5.1.1.3)."""
    return str(zlib.crc32(f"{kind} udp {base.host}".encode()))
