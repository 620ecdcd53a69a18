"""Dialing from this machine's own network. It judges no address: who must, resolves first and dials what was judged."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Sequence
from itertools import zip_longest

from netbird_host.sources import address_text
from netbird_proxy.api.errors import DialFailed, DialRefused, DialTimeout, DialUnreachable, UpstreamError
from netbird_proxy.api.model import Address
from netbird_proxy.api.tunnels import ProtocolFactory

STAGGER = 0.25
"""Seconds that one address may take before the next is tried beside it (RFC 8305 §5)."""

KEEPALIVE_SECONDS = 30

_UNREACHABLE = frozenset(
    (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
)


def dial_error(address: Address, error: BaseException) -> UpstreamError:
    """The leaf of the error tree for what an attempt to connect raised."""
    leaf: type[UpstreamError]
    if isinstance(error, UpstreamError):
        return error
    if isinstance(error, ConnectionRefusedError):
        leaf, what = DialRefused, "refused"
    elif isinstance(error, TimeoutError):
        leaf, what = DialTimeout, "timed out"
    elif isinstance(error, socket.gaierror):
        leaf, what = DialFailed, f"name not resolved ({error.strerror or error})"
    elif isinstance(error, OSError) and error.errno in _UNREACHABLE:
        leaf, what = DialUnreachable, error.strerror or str(error)
    else:
        leaf, what = DialFailed, f"{type(error).__name__}: {error}"
    return leaf(f"dial {address}: {what}")


def literal(host: str) -> str | None:
    """The host in its one canonical spelling if it is an IP address, else None.

    Strict: `127.1` and `2130706433`, which a resolver also takes for addresses, are names here, so that they are
    resolved before anybody judges them.
    """
    try:
        return address_text(ipaddress.ip_address(host))
    except ValueError:
        return None


async def resolve(host: str) -> tuple[str, ...]:
    """The addresses of a name, families taking turns, in the resolver's order; of a literal, itself.

    Takes as long as the system's resolver: put it under a deadline.

    Raises:
        DialFailed: there is no such name, or the resolver did not answer.
    """
    address = literal(host)
    if address is not None:
        return (address,)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DialFailed(f"resolve {host!r}: {detail}") from error
    families: dict[int, list[str]] = {}
    for family, _, _, _, sockaddr in found:
        if family in (socket.AF_INET, socket.AF_INET6) and isinstance(sockaddr[0], str):
            names = families.setdefault(family, [])
            if sockaddr[0] not in names:
                names.append(sockaddr[0])
    addresses = tuple(name for turn in zip_longest(*families.values()) for name in turn if name is not None)
    if not addresses:
        raise DialFailed(f"resolve {host!r}: no addresses")
    return addresses


class HostDialer:
    """A `Dialer` over the running loop.

    Args:
        stagger: seconds, see STAGGER.
    """

    def __init__(self, *, stagger: float = STAGGER) -> None:
        self._stagger = stagger

    def __repr__(self) -> str:
        return "HostDialer()"

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """See `Dialer.dial`. A literal is dialed as it is; a name's addresses are tried one after the other, each
        beside those that have not answered yet."""
        loop = asyncio.get_running_loop()
        if not 0 < address.port < 65536:
            # uvloop takes it modulo 65536, which would be a port that nobody has judged.
            raise DialFailed(f"dial {address}: no such port")
        try:
            async with asyncio.timeout(timeout):
                sock = await self._connect(await resolve(address.host), address.port)
                try:
                    # The protocol sees its transport only now, so attempts that lost never show.
                    return await loop.create_connection(protocol_factory, sock=sock)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError as error:
            raise DialTimeout(f"dial {address}: nothing within {timeout:g} s") from error
        except UpstreamError:
            raise
        except (OSError, ValueError, OverflowError) as error:
            raise dial_error(address, error) from error

    async def _connect(self, hosts: Sequence[str], port: int) -> socket.socket:
        if len(hosts) == 1:
            return await _connected(hosts[0], port)
        return await _race(hosts, port, self._stagger)


async def _connected(host: str, port: int) -> socket.socket:
    """A connected socket. Closed again on any failure, cancellation included."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with contextlib.suppress(OSError, AttributeError):  # the names differ between systems
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except (OSError, ValueError, OverflowError) as error:
            raise dial_error(Address(host, port), error) from error
    except BaseException:
        sock.close()
        raise
    return sock


async def _race(hosts: Sequence[str], port: int, stagger: float) -> socket.socket:
    """The first socket that connects. All failing, the first failure, with the others named in its message."""
    errors: list[UpstreamError] = []
    winner: socket.socket | None = None
    done = asyncio.Event()  # a winner, or one more failure: either way the next attempt need not wait

    async def attempt(host: str) -> None:
        nonlocal winner
        try:
            sock = await _connected(host, port)
        except UpstreamError as error:
            errors.append(error)
        else:
            if winner is None:
                winner = sock
            else:
                sock.close()
        done.set()

    try:
        async with asyncio.TaskGroup() as group:
            attempts = []
            for host in hosts:
                done.clear()
                attempts.append(group.create_task(attempt(host)))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(stagger):
                        await done.wait()
                if winner is not None:
                    break
            while winner is None and len(errors) < len(attempts):
                done.clear()
                await done.wait()
            for task in attempts:
                task.cancel()
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    if winner is None:
        raise type(errors[0])("; ".join(str(error) for error in errors)) from errors[0]
    return winner
