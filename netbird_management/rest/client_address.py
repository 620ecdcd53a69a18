"""Where a request comes from, also behind a proxy of the operator's."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from fastapi import Request

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


def client_address(request: Request, trusted: Sequence[Network]) -> str:
    """The nearest address that is no trusted proxy's; the connection's own where nobody says another.

    `X-Forwarded-For` is read over all its lines from the right, and only as far as trusted proxies wrote it: an entry
    that is no address ends the search. Where all of them are trusted it is the leftmost.
    """
    peer = request.client.host if request.client is not None else ""
    address = _address(peer)
    if address is None or not _among(address, trusted):
        return peer
    for entry in reversed(",".join(request.headers.getlist("x-forwarded-for")).split(",")):
        found = _address(entry.strip())
        if found is None:
            break
        address = found
        if not _among(address, trusted):
            break
    return str(address)


def _among(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _address(text: str) -> Address | None:
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found
