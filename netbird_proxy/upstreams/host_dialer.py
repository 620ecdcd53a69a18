"""Dialing from this machine's own network."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from aiohappyeyeballs import AddrInfoType, start_connection

from netbird_host.sources import address_text
from netbird_proxy.api.addresses import AddressJudge
from netbird_proxy.api.errors import (
    AddressRefused,
    DialFailed,
    DialRefused,
    DialTimeout,
    DialUnreachable,
    UpstreamError,
)
from netbird_proxy.api.model import Address
from netbird_proxy.api.tunnels import ProtocolFactory

STAGGER = 0.25
"""Seconds to wait for an address before the next one is tried in parallel (RFC 8305 §5)."""

KEEPALIVE_SECONDS = 30

_UNREACHABLE = frozenset(
    (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
)


def dial_error(address: Address, error: BaseException) -> UpstreamError:
    """The UpstreamError for an exception of an attempt to connect."""
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
    """The canonical spelling of an IP address; None for any other host.

    Strict: `127.1` and `2130706433`, which resolvers also accept as addresses, count as names, so that they are
    resolved before they are judged.
    """
    try:
        return address_text(ipaddress.ip_address(host))
    except ValueError:
        return None


async def resolve(host: str) -> tuple[str, ...]:
    """The addresses of a name in the resolver's order, address families alternating; for a literal, itself.

    It takes as long as the system's resolver, so the caller must set a deadline.

    Raises:
        DialFailed: the name does not exist, or the resolver did not answer.
    """
    address = literal(host)
    if address is not None:
        return (address,)
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DialFailed(f"resolve {host!r}: {detail}") from error
    families: dict[int, list[str]] = {}
    for family, _, _, _, sockaddr in infos:
        if family in (socket.AF_INET, socket.AF_INET6) and isinstance(sockaddr[0], str):
            names = families.setdefault(family, [])
            if sockaddr[0] not in names:
                names.append(sockaddr[0])
    addresses = tuple(name for turn in zip_longest(*families.values()) for name in turn if name is not None)
    if not addresses:
        raise DialFailed(f"resolve {host!r}: no addresses")
    return addresses


@dataclass(frozen=True, slots=True)
class HostDialer:
    """A `Dialer` from this machine's own network. Equal dialers dial alike.

    Args:
        judge: the operator's rules for the account; only addresses that they allow are dialed, and exactly the judged
            address is dialed. None judges nothing.
        stagger: seconds; see STAGGER.
    """

    judge: AddressJudge | None = None
    stagger: float = STAGGER

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """See `Dialer.dial`. A literal is dialed directly. The addresses of a name are tried in order, each in parallel
        with earlier ones that have not answered.

        Raises:
            AddressRefused: the rules allow none of the addresses; nothing was dialed.
        """
        loop = asyncio.get_running_loop()
        if not 0 < address.port < 65536:
            # uvloop takes the port modulo 65536, which would be a port that was not judged.
            raise DialFailed(f"dial {address}: no such port")
        hosts: Sequence[str] = ()
        try:
            async with asyncio.timeout(timeout):
                hosts = self._open(await resolve(address.host), address)
                sock = await start_connection(
                    [_address_info(host, address.port) for host in hosts],
                    happy_eyeballs_delay=self.stagger,
                    loop=loop,
                    socket_factory=_make_socket,
                )
                try:
                    # The protocol gets its transport only now, so it never sees unsuccessful attempts.
                    return await loop.create_connection(protocol_factory, sock=sock)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError as error:
            raise DialTimeout(f"dial {address}: nothing within {timeout:g} s") from error
        except UpstreamError:
            raise
        except (OSError, ValueError, OverflowError) as error:
            failure = dial_error(address, error)
            if len(hosts) > 1:
                failure = type(failure)(f"{failure} ({', '.join(hosts)})")
            raise failure from error

    def _open(self, hosts: Sequence[str], address: Address) -> Sequence[str]:
        """The addresses that the rules allow; AddressRefused if they allow none."""
        if self.judge is None:
            return hosts
        refusals = {host: self.judge.refusal(host, address.port) for host in hosts}
        allowed = [host for host, refusal in refusals.items() if not refusal]
        if not allowed:
            raise AddressRefused(f"dial {address} from this machine: {'; '.join(refusals.values())}")
        return allowed


def _address_info(host: str, port: int) -> AddrInfoType:
    """The result of `getaddrinfo` for a literal, without the call."""
    if ":" in host:
        return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port)


def _make_socket(info: AddrInfoType) -> socket.socket:
    sock = socket.socket(*info[:3])
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with contextlib.suppress(OSError, AttributeError):  # the names differ between systems
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)
    return sock
