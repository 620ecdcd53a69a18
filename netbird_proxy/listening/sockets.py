"""Listeners on this machine's own addresses."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterable
from typing import Any

from netbird_proxy.errors import SettingsError
from netbird_proxy.listening.connections import Connections
from netbird_proxy.listening.http1 import Http1Protocol
from netbird_proxy.listening.tls import SHUTDOWN_TIMEOUT, ServerTls
from netbird_proxy.model import Address

BACKLOG = 1024


class HostListener:
    """One listening socket with the connections that it accepted."""

    def __init__(self, server: asyncio.Server, connections: Connections) -> None:
        self._server = server
        self._connections = connections
        name = server.sockets[0].getsockname()
        self.address = Address(str(name[0]), int(name[1]))

    def close(self) -> None:
        """Accept no more. Connections that were accepted live on. Idempotent."""
        self._server.close()

    async def drain(self, timeout: float) -> None:
        """End the connections: idle ones now, busy ones once answered, all of them after `timeout` seconds."""
        await self._connections.drain(timeout)

    def __repr__(self) -> str:
        return f"<HostListener {self.address}: {len(self._connections.open)} connections>"


async def serve_host(
    connections: Connections, address: Address, *, tls: ServerTls | None = None, inherited: socket.socket | None = None
) -> HostListener:
    """Listen on an address; an empty host is every address, port 0 lets the system choose.

    Args:
        inherited: a socket that listens there already; what waits in it is served.

    Raises:
        SettingsError: the address cannot be had; the message says why.
    """
    loop = asyncio.get_running_loop()
    # The loop's own TLS where there is a socket: under uvloop it costs a fifth less a request than asyncio's over it.
    how: dict[str, Any] = {}
    if tls is not None:
        how = {
            "ssl": tls.context,
            "ssl_handshake_timeout": connections.limits.head_timeout,
            "ssl_shutdown_timeout": SHUTDOWN_TIMEOUT,
        }
    try:
        if inherited is None:
            how |= {"host": address.host or None, "port": address.port}
        else:
            how["sock"] = inherited
        server = await loop.create_server(lambda: Http1Protocol(connections, loop), backlog=BACKLOG, **how)
    except OSError as exc:
        why = os.strerror(exc.errno) if exc.errno else str(exc)
        raise SettingsError(f"listen.address {address}: {why}") from exc
    for one in server.sockets:
        _look_for_the_vanished(one, connections.limits.write_timeout)
    return HostListener(server, connections)


def _look_for_the_vanished(listening: socket.socket, timeout: float) -> None:
    """Have the kernel end connections whose client is gone without a word: power, cable, a phone out of reach.

    An event stream with little to say would be held for such a client for hours. What a listening socket has is
    inherited by every connection that it accepts, so this costs none of them anything.
    """
    seconds = max(1, round(timeout))
    with contextlib.suppress(OSError), socket.socket(fileno=socket.dup(listening.fileno())) as twin:
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        twin.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
        twin.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 4))
        twin.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(timeout * 1000))


def inherited_for(address: Address, sockets: Iterable[socket.socket]) -> list[socket.socket]:
    """Those of the sockets that listen on an address. An empty host is matched by a socket for every address."""
    return [one for one in sockets if one.family in _INTERNET and _is_for(one.getsockname(), address)]


_INTERNET = (socket.AF_INET, socket.AF_INET6)


def _is_for(name: tuple[Any, ...], address: Address) -> bool:
    if name[1] != address.port:
        return False
    there = ipaddress.ip_address(name[0])
    if not address.host:
        return there.is_unspecified
    try:
        return ipaddress.ip_address(address.host) == there
    except ValueError:  # a name: whoever hands sockets over says addresses
        return False
