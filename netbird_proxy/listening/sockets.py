"""Listeners on this machine's own addresses."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from netbird_proxy.api.errors import SettingsError
from netbird_proxy.api.model import Address
from netbird_proxy.listening.accepting import Acceptor
from netbird_proxy.listening.connections import Connections
from netbird_proxy.listening.tls import ServerTls

BACKLOG = 1024


class HostListener:
    """The listening sockets of one address, several where it is a name or a wildcard, and what they accepted."""

    def __init__(self, sockets: Sequence[socket.socket], connections: Connections, tls: ServerTls | None) -> None:
        """Args:
        sockets: at least one, all bound; they are closed with this.
        """
        self._connections = connections
        self._tls = tls
        self._bound = list(sockets)
        self._acceptors: list[Acceptor] = []
        self.addresses = tuple(Address(*sock.getsockname()[:2]) for sock in sockets)
        self.address = self.addresses[0]

    def open(self) -> None:
        """Listen, and accept from now on. SettingsError where somebody else took the address meanwhile."""
        try:
            for sock in self._bound:
                sock.listen(BACKLOG)
        except OSError as exc:
            raise _unavailable(self.address, exc) from exc
        self._acceptors = [Acceptor(sock, self._connections, self._tls) for sock in self._bound]
        self._bound = []

    def close(self) -> None:
        """Accept no more. Connections that were accepted live on. Idempotent."""
        for sock in self._bound:
            sock.close()
        for acceptor in self._acceptors:
            acceptor.close()

    async def drain(self, timeout: float) -> None:
        """End the connections: idle ones now, busy ones once answered, all of them after `timeout` seconds."""
        await self._connections.drain(timeout)

    def __repr__(self) -> str:
        return f"<HostListener {self.address}: {len(self._connections.open)} connections>"


async def serve_host(connections: Connections, address: Address, *, tls: ServerTls | None = None) -> HostListener:
    """Listen on an address at once; see `bind_host`."""
    listener = await bind_host(connections, address, tls=tls)
    listener.open()
    return listener


async def bind_host(
    connections: Connections, address: Address, *, tls: ServerTls | None = None, inherited: socket.socket | None = None
) -> HostListener:
    """Take an address, without listening there before `open` is called.

    An empty host is every address, port 0 lets the system choose.

    Args:
        inherited: a socket that listens there already; what waits in it is served once this is opened.

    Raises:
        SettingsError: the address cannot be had; the message says why.
    """
    sockets: list[socket.socket] = []
    try:
        sockets = [inherited] if inherited is not None else await _bound(address)
        for sock in sockets:
            _look_for_the_vanished(sock, connections.limits.write_timeout)
    except OSError as exc:
        for sock in sockets:
            sock.close()
        raise _unavailable(address, exc) from exc
    return HostListener(sockets, connections, tls)


def _unavailable(address: Address, exc: OSError) -> SettingsError:
    why = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else str(exc)
    return SettingsError(f"listen.address {address}: {why}")


async def _bound(address: Address) -> list[socket.socket]:
    """A socket for each address of a host. One that this machine does not have is left out, unless it is the only one.

    Raises:
        OSError: an address is taken, or none can be had.
    """
    infos = await asyncio.get_running_loop().getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, kind, protocol, _, name in dict.fromkeys(infos):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:
                missing = error
                continue
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind(name)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                missing = error
                sockets.pop().close()
        if not sockets:
            raise missing or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


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
