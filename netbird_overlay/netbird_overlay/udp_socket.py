"""The UDP socket of a node in the outside network."""

from __future__ import annotations

import contextlib
import socket

SOCKET_BUFFER_BYTES = 4 << 20
"""Requested size of the socket's buffers; an unprivileged process gets at most `net.core.rmem_max`."""


def open_socket(address: str, port: int) -> socket.socket:
    """Open a UDP socket for the engine. An empty address means all addresses, of both families where available.

    Raises OSError if the port is in use.
    """
    family = socket.AF_INET6 if ":" in address or (not address and _has_ipv6()) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if address else 0)
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _has_ipv6() -> bool:
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True
