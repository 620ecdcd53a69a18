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
    """The listening sockets of an address (several for a DNS name or a wildcard), and their connections."""

    def __init__(self, sockets: Sequence[socket.socket], connections: Connections, tls: ServerTls | None) -> None:
        """Args:
        sockets: at least one, all bound; the listener closes them.
        """
        self._connections = connections
        self._tls = tls
        self._bound = list(sockets)
        self._acceptors: list[Acceptor] = []
        self._covering: list[Acceptor] = []
        self.addresses = tuple(Address(*sock.getsockname()[:2]) for sock in sockets)
        self.address = self.addresses[0]

    def open(self) -> None:
        """Start to listen and accept. SettingsError if another process has taken the address meanwhile."""
        try:
            for sock in self._bound:
                sock.listen(BACKLOG)
        except OSError as exc:
            raise unavailable(self.address, exc) from exc
        self._acceptors = [Acceptor(sock, self._connections, self._tls) for sock in self._bound]
        self._bound = []

    def cover(self, sockets: Iterable[socket.socket]) -> None:
        """Accept also on sockets of other processes, instead of those of the last call. They stay open.

        A socket that does not listen yet is left out: its process has opened no listener that clients could reach.
        """
        for acceptor in self._covering:
            acceptor.close()
        self._covering = [
            Acceptor(sock.dup(), self._connections, self._tls)
            for sock in sockets
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ]

    def close(self) -> None:
        """Stop accepting. Accepted connections stay open. Idempotent."""
        self.cover(())
        for sock in self._bound:
            sock.close()
        for acceptor in self._acceptors:
            acceptor.close()

    async def drain(self, timeout: float) -> None:
        """End the connections: idle ones now, busy ones after their answer, all after `timeout` seconds."""
        await self._connections.drain(timeout)

    def __repr__(self) -> str:
        return f"<HostListener {self.address}: {len(self._connections.open)} connections>"


async def serve_host(connections: Connections, address: Address, *, tls: ServerTls | None = None) -> HostListener:
    """Listen on an address at once; see `bind_host`."""
    listener = await bind_host(connections, address, tls=tls)
    listener.open()
    return listener


async def bind_host(
    connections: Connections,
    address: Address,
    *,
    tls: ServerTls | None = None,
    inherited: Sequence[socket.socket] = (),
) -> HostListener:
    """Reserve an address; `open` then starts to listen on it.

    An empty host stands for every address; for port 0 the system chooses a port.

    Args:
        inherited: sockets that another process has bound to the address, and that may already listen; their waiting
            connections are accepted after `open`.

    Raises:
        SettingsError: the address is not available; the message names the reason.
    """
    sockets: Sequence[socket.socket] = ()
    try:
        sockets = inherited or await bound_sockets(address)
        for sock in sockets:
            _detect_dead_clients(sock, connections.limits.write_timeout)
    except OSError as exc:
        for sock in sockets:
            sock.close()
        raise unavailable(address, exc) from exc
    return HostListener(sockets, connections, tls)


def unavailable(address: Address, exc: OSError) -> SettingsError:
    why = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else str(exc)
    return SettingsError(f"listen.address {address}: {why}")


async def bound_sockets(address: Address) -> list[socket.socket]:
    """A bound socket for each address of a host, without addresses that this machine does not have.

    Raises:
        OSError: an address is in use, or none of them exists on this machine.
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


def _detect_dead_clients(listening: socket.socket, timeout: float) -> None:
    """Let the kernel end connections whose client vanished without closing them (power, cable, a phone out of range).

    A quiet event stream would otherwise stay open for hours. Accepted connections inherit the options of the listening
    socket, so this costs them nothing.

    Args:
        timeout: seconds without an acknowledgement after which a connection ends.
    """
    seconds = max(1, round(timeout))
    with contextlib.suppress(OSError), socket.socket(fileno=socket.dup(listening.fileno())) as twin:
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        twin.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
        twin.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 4))
        twin.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(timeout * 1000))


def inherited_for(address: Address, sockets: Iterable[socket.socket]) -> list[socket.socket]:
    """The sockets that listen on an address. An empty host matches a socket for every address."""
    return [sock for sock in sockets if sock.family in _INTERNET and _is_for(sock.getsockname(), address)]


_INTERNET = (socket.AF_INET, socket.AF_INET6)


def _is_for(name: tuple[Any, ...], address: Address) -> bool:
    if name[1] != address.port:
        return False
    listening = ipaddress.ip_address(name[0])
    if not address.host:
        return listening.is_unspecified
    try:
        return ipaddress.ip_address(address.host) == listening
    except ValueError:  # a DNS name: sockets are inherited for literal addresses only
        return False
