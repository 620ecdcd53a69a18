"""Judges the relays that peers name: a peer must not make this host call its own or its provider's services."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address

from netbird_overlay.members import is_special, plain_address
from netbird_wire.relay_url import BadRelayUrl, parse_relay_url


def judged_address(server: str, server_ip: bytes, configured: Iterable[str]) -> bytes | None:
    """Return the address at which a relay may be tried first, b"" for its name only; None if it must not be dialed.

    Loopback, link-local (with the metadata services of cloud providers), multicast and unspecified addresses are
    refused, unless management's own configuration names them as the host of a relay. Names are judged when they are
    resolved, by the relay's client.

    Args:
        server, server_ip: the relay's URL, and 4 or 16 bytes or b"", as the peer sent them.
        configured: the URLs of management's configuration.
    """
    try:
        name = parse_relay_url(server).host
    except BadRelayUrl:
        return None
    host = plain_address(name) or _odd_address(name)
    allowed = set()
    for url in configured:
        try:
            allowed.add(plain_address(parse_relay_url(url).host))
        except BadRelayUrl:
            continue
    if host is not None and host not in allowed and is_special(host):
        return None
    address = plain_address(str(ip_address(server_ip))) if len(server_ip) in (4, 16) else None
    return server_ip if address is not None and (address in allowed or not is_special(address)) else b""


def _odd_address(name: str) -> str | None:
    """The address in a spelling that only resolvers take for one, such as `127.1` or `0x7f000001`."""
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        return None
