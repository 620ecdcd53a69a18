"""What proxies in front of us say about a client, and whom of them to believe.

Read over all lines of the field, from the right: each proxy appends whom it got the request from, so everything left of
the first address that is not a trusted proxy's is that client's own word.
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
    """What stood in front of a connection from a trusted proxy. What is not said, or not in one plain form, is empty.

    Attributes:
        client: the nearest address that is not a trusted proxy's; empty where `Forwarded` cannot be read.
        chain: the addresses as they were said, left to right, the connection's own peer not among them.
        host, proto, port, real_ip: what the client asked for, and who it is, as the proxy says.
    """

    client: str
    chain: tuple[str, ...] = ()
    host: str = ""
    proto: str = ""
    port: str = ""
    real_ip: str = ""


class TrustedProxies:
    """Whose word counts.

    Args:
        field: where they say it. Only the one that they write is read: the other may be anybody's.
    """

    def __init__(self, networks: Iterable[Network], *, field: Field = "x-forwarded-for") -> None:
        self._networks = tuple(networks)
        self._read = _forwarded if field == "forwarded" else _x_forwarded

    def __contains__(self, address: str) -> bool:
        found = parsed(address)
        return found is not None and self._trusts(found)

    def read(self, peer: str, raw: Sequence[tuple[bytes, bytes]]) -> Forwarded | None:
        """What a connection's peer says in a head; None where it is nobody to be believed.

        Args:
            raw: the head's fields, names in lower case.
        """
        return self._read(self, peer, raw) if peer in self else None

    def nearest(self, peer: str, chain: Sequence[str]) -> tuple[str, int]:
        """The first address from the right that is no trusted proxy's, and where in the chain it stands (-1: nowhere).

        An entry that is no address ends the search: whoever wrote it is trusted, and knows no more than that.
        """
        client, at = peer, -1
        for index in range(len(chain) - 1, -1, -1):
            found = parsed(chain[index])
            if found is None:
                break
            client, at = str(found), index
            if not self._trusts(found):
                break
        return client, at

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def parsed(text: str) -> Address | None:
    """An address, which may have a port and brackets; a v4-mapped one as the IPv4 address that it is."""
    if match := _WITH_PORT.fullmatch(text):
        text = match[1] or match[2] or ""
    try:
        found = ip_address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address) and found.scope_id is not None:
        return None
    return unmapped(found)


def _lines(raw: Sequence[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in raw if key == name]


def _one(raw: Sequence[tuple[bytes, bytes]], name: bytes, form: re.Pattern[str]) -> str:
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
        host=_one(raw, b"x-forwarded-host", _HOST),
        proto=_one(raw, b"x-forwarded-proto", _PROTO),
        port=_one(raw, b"x-forwarded-port", _PORT),
        real_ip=str(address) if len(real) == 1 and (address := parsed(real[0])) is not None else "",
    )


def _forwarded(trusted: TrustedProxies, peer: str, raw: Sequence[tuple[bytes, bytes]]) -> Forwarded:
    """RFC 7239. Where one line cannot be read, none is: nobody could say which element is whose, so there is no client.

    In particular it is not the trusted proxy: a quote that a client leaves open swallows what the proxy appends, and
    would make the client as trusted as that.
    """
    elements: list[dict[str, str]] = []
    for line in _lines(raw, b"forwarded"):
        read = _elements(line)
        if read is None:
            return Forwarded(client="")
        elements += read
    chain = tuple(element.get("for", "unknown") for element in elements)
    client, at = trusted.nearest(peer, chain)
    said = elements[at] if at >= 0 else {}
    host, proto = said.get("host", ""), said.get("proto", "").lower()
    return Forwarded(
        client=client,
        chain=chain,
        host=host if _HOST.fullmatch(host) else "",
        proto=proto if _PROTO.fullmatch(proto) else "",
    )


def _elements(line: str) -> list[dict[str, str]] | None:
    found: list[dict[str, str]] = []
    at = 0
    if line.count(",") > _MOST_ELEMENTS:
        return None  # a head full of commas would cost a tenth of a second
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
            found.append(element)
        at = match.end()
    return found


__all__ = [
    "Forwarded",
    "TrustedProxies",
]
