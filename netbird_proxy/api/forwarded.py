"""Reports of proxies in front of this one about a client, and which of these proxies the operator trusts.

All lines of the field are read from the right: each proxy appends the address that it received the request from. The
first address that is not a trusted proxy's is the client; entries to the left of it are the client's unverified claims.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, Literal

from netbird_host.sources import unmapped

Network = IPv4Network | IPv6Network

Address = IPv4Address | IPv6Address
Field = Literal["x-forwarded-for", "forwarded"]

_WITH_PORT: Final = re.compile(r"(?:\[([^\]]*)\]|([0-9.]+))(?::[0-9]{1,5})?")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9_.-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_PAIR: Final = r"[A-Za-z]+=(?:[^\s\",;=\[\]]+|\"[^\"\\\r\n]*\")"
_MOST_ELEMENTS: Final = 256
_ELEMENT: Final = re.compile(rf"[ \t]*({_PAIR}(?:[ \t]*;[ \t]*{_PAIR})*)?[ \t]*(?:,|$)")


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A trusted proxy's report about the request that it passed on. A value that is missing or ambiguous is empty.

    Attributes:
        client: the nearest address that is not a trusted proxy's; empty where `Forwarded` cannot be parsed.
        chain: the addresses as they were sent, left to right, without the connection's own peer.
        host, proto, port, real_ip: the host, scheme and port that the client requested, and the client's address, as
            the proxy reports them.
    """

    client: str
    chain: tuple[str, ...] = ()
    host: str = ""
    proto: str = ""
    port: str = ""
    real_ip: str = ""


class TrustedProxies:
    """Networks of proxies whose reports about clients are trusted.

    Args:
        field: the field that these proxies write. The other field is not read: any client could have sent it.
    """

    def __init__(self, networks: Iterable[Network], *, field: Field = "x-forwarded-for") -> None:
        self._networks = tuple(networks)
        self._read = _forwarded if field == "forwarded" else _x_forwarded

    def __contains__(self, address: str) -> bool:
        ip = parsed(address)
        return ip is not None and self._trusts(ip)

    def read(self, peer: str, raw: Sequence[tuple[bytes, bytes]]) -> Forwarded | None:
        """The report of a connection's peer in a head; None where the peer is not a trusted proxy.

        Args:
            raw: the head's fields, names in lower case.
        """
        return self._read(self, peer, raw) if peer in self else None

    def nearest(self, peer: str, chain: Sequence[str]) -> tuple[str, int]:
        """The first address from the right that is not a trusted proxy's, and its index in the chain (-1: the peer).

        An entry that is not an address ends the search: a trusted proxy wrote it, and it hides everything before it.
        """
        client, at = peer, -1
        for index in range(len(chain) - 1, -1, -1):
            ip = parsed(chain[index])
            if ip is None:
                break
            client, at = str(ip), index
            if not self._trusts(ip):
                break
        return client, at

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def parsed(text: str) -> Address | None:
    """An address, with or without port and brackets; a v4-mapped one becomes IPv4. None for other text."""
    if match := _WITH_PORT.fullmatch(text):
        text = match[1] or match[2] or ""
    try:
        ip = ip_address(text)
    except ValueError:
        return None
    if isinstance(ip, IPv6Address) and ip.scope_id is not None:
        return None
    return unmapped(ip)


def _lines(raw: Sequence[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in raw if key == name]


def _only_value(raw: Sequence[tuple[bytes, bytes]], name: bytes, form: re.Pattern[str]) -> str:
    lines = _lines(raw, name)
    return lines[0] if len(lines) == 1 and form.fullmatch(lines[0]) else ""


_PROTO: Final = re.compile("https?")
_PORT: Final = re.compile("[1-9][0-9]{0,4}")


def _x_forwarded(trusted: TrustedProxies, peer: str, raw: Sequence[tuple[bytes, bytes]]) -> Forwarded:
    chain = tuple(
        entry for line in _lines(raw, b"x-forwarded-for") for part in line.split(",") if (entry := part.strip(" \t"))
    )
    real = _lines(raw, b"x-real-ip")
    return Forwarded(
        client=trusted.nearest(peer, chain)[0],
        chain=chain,
        host=_only_value(raw, b"x-forwarded-host", _HOST),
        proto=_only_value(raw, b"x-forwarded-proto", _PROTO),
        port=_only_value(raw, b"x-forwarded-port", _PORT),
        real_ip=str(address) if len(real) == 1 and (address := parsed(real[0])) is not None else "",
    )


def _forwarded(trusted: TrustedProxies, peer: str, raw: Sequence[tuple[bytes, bytes]]) -> Forwarded:
    """Read RFC 7239's field. If one line cannot be parsed, all are dropped and the client is empty.

    The elements could not be attributed otherwise: a quote that a client leaves open swallows the element that the
    trusted proxy appends, and the client would pass as the trusted proxy.
    """
    elements: list[dict[str, str]] = []
    for line in _lines(raw, b"forwarded"):
        read = _elements(line)
        if read is None:
            return Forwarded(client="")
        elements += read
    chain = tuple(element.get("for", "unknown") for element in elements)
    client, at = trusted.nearest(peer, chain)
    element = elements[at] if at >= 0 else {}
    host, proto = element.get("host", ""), element.get("proto", "").lower()
    return Forwarded(
        client=client,
        chain=chain,
        host=host if _HOST.fullmatch(host) else "",
        proto=proto if _PROTO.fullmatch(proto) else "",
    )


def _elements(line: str) -> list[dict[str, str]] | None:
    elements: list[dict[str, str]] = []
    at = 0
    if line.count(",") > _MOST_ELEMENTS:
        return None  # a head full of commas would take a tenth of a second
    while at < len(line):
        match = _ELEMENT.match(line, at)
        if match is None or match.end() == at:
            return None
        if match[1]:
            element: dict[str, str] = {}
            for pair in re.findall(_PAIR, match[1]):
                name, _, value = pair.partition("=")
                if name.lower() in element:
                    return None
                element[name.lower()] = value.strip('"')
            elements.append(element)
        at = match.end()
    return elements


__all__ = [
    "Forwarded",
    "TrustedProxies",
]
