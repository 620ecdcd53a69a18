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


@dataclass(frozen=True, slots=True)
class HostDialer:
    """A `Dialer` over the running loop. Equal ones dial alike.

    Args:
        judge: the operator's rules for the account that dials; only addresses that they open are dialed, and the
            address that was judged is the one that is dialed. None judges nothing.
        stagger: seconds, see STAGGER.
    """

    judge: AddressJudge | None = None
    stagger: float = STAGGER

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """See `Dialer.dial`. A literal is dialed as it is; a name's addresses are tried one after the other, each
        beside those that have not answered yet.

        Raises:
            AddressRefused: the rules open none of the addresses; nothing was dialed.
        """
        loop = asyncio.get_running_loop()
        if not 0 < address.port < 65536:
            # uvloop takes it modulo 65536, which would be a port that nobody has judged.
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
            failure = dial_error(address, error)
            if len(hosts) > 1:
                failure = type(failure)(f"{failure} ({', '.join(hosts)})")
            raise failure from error

    def _open(self, hosts: Sequence[str], address: Address) -> Sequence[str]:
        """The addresses that may be dialed."""
        if self.judge is None:
            return hosts
        refusals = {host: self.judge.refusal(host, address.port) for host in hosts}
        allowed = [host for host, refusal in refusals.items() if not refusal]
        if not allowed:
            raise AddressRefused(f"dial {address} from this machine: {'; '.join(refusals.values())}")
        return allowed


def _address_info(host: str, port: int) -> AddrInfoType:
    """What `getaddrinfo` would say of a literal, without asking it."""
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
