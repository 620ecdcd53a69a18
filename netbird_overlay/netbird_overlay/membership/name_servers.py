"""Queries to the name servers that an account configured, over the host's own network."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from netbird_overlay.members import plain_address
from netbird_overlay.membership.zones import fold
from netbird_wire.management_pb2 import NameServerGroup

SINGLE_TIMEOUT, GROUP_TIMEOUT, LEAST_TIMEOUT = 4.0, 5.0, 2.0
"""Seconds for the only server of a group; for all servers of a larger one; and the least for each of these."""
MAX_GROUPS, MAX_SERVERS = 64, 8
MAX_ADDRESSES = 64
"""Maximum number of addresses that are taken from an answer."""
DNS_PORT = 53

Exchange = Callable[[dns.message.Message, str, int, float], Awaitable[dns.message.Message]]
"""Sends a query to a server (address, port, timeout in seconds) and returns the answer.

Raises OSError, EOFError, DNSException."""


class NoSuchName(Exception):
    """A name server answered that the name does not exist."""


class NoAnswer(Exception):
    """No name server gave a usable answer."""


@dataclass(frozen=True, slots=True)
class Server:
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class ServerGroup:
    """Servers that are asked in order. `domains` are folded; () for the primary group, which is asked last."""

    servers: tuple[Server, ...]
    domains: tuple[str, ...] = ()


def read_groups(groups: Iterable[NameServerGroup]) -> tuple[ServerGroup, ...]:
    """Read the groups of a map. A server that is not a unicast address of another machine is left out.

    Servers on loopback or link-local addresses would be this machine's own, or its cloud's metadata service: an account
    must not reach these by calling them name servers.
    """
    read = []
    for group in groups:
        servers = []
        for server in group.NameServers:
            address = plain_address(server.IP)
            port = server.Port or DNS_PORT
            if address is not None and 0 < port < 65536 and _is_elsewhere(address):
                servers.append(Server(address, port))
        domains = tuple(sorted({fold(domain) for domain in group.Domains} - {""}))
        if servers and (domains or group.Primary):
            read.append(ServerGroup(tuple(servers[:MAX_SERVERS]), domains))
    return tuple(read[:MAX_GROUPS])


def _is_elsewhere(text: str) -> bool:
    address = ip_address(text)
    return not (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
    )


def matching(groups: Iterable[ServerGroup], name: str) -> list[list[ServerGroup]]:
    """Return the groups for a folded name, in the order of asking; those of one inner list are asked at once.

    Longer domains go first, primary groups last.
    """
    by_length: dict[int, list[ServerGroup]] = {}
    for group in groups:
        if not group.domains:
            by_length.setdefault(0, []).append(group)
            continue
        lengths = [len(domain) for domain in group.domains if name == domain or name.endswith("." + domain)]
        if lengths:
            by_length.setdefault(max(lengths), []).append(group)
    return [by_length[length] for length in sorted(by_length, reverse=True)]


async def host_exchange(query: dns.message.Message, address: str, port: int, timeout: float) -> dns.message.Message:
    """Exchange one query by UDP, and by TCP if the answer was cut, through the host's network."""
    answer, _ = await dns.asyncquery.udp_with_fallback(query, address, timeout=timeout, port=port)
    return answer


async def ask_group(group: ServerGroup, name: str, kinds: Sequence[str], exchange: Exchange) -> tuple[str, ...]:
    """Return the addresses of a name from the first server of a group that has an answer.

    Raises:
        NoSuchName: a server answered so; this is final.
        NoAnswer: none answered.
    """
    several = max(GROUP_TIMEOUT / len(group.servers), LEAST_TIMEOUT)
    share = SINGLE_TIMEOUT if len(group.servers) == 1 else several
    failure = NoAnswer(f"no name server answers for {name}")
    for server in group.servers:
        try:
            return await ask(server.address, server.port, name, kinds, exchange, timeout=share)
        except NoAnswer as exc:
            failure = exc
    raise failure


async def ask(
    address: str, port: int, name: str, kinds: Sequence[str], exchange: Exchange, *, timeout: float
) -> tuple[str, ...]:
    """Return a server's addresses for a name, the families of `kinds` ("A", "AAAA") in this order.

    Raises:
        NoSuchName, NoAnswer.
    """

    async def ask_kind(kind: str) -> tuple[str, ...] | Exception:
        try:
            query = dns.message.make_query(name, kind)
            answer = await exchange(query, address, port, timeout)
            if not query.is_response(answer):
                return NoAnswer(f"{address}: the answer is one to another query")
        except (OSError, EOFError, dns.exception.DNSException) as exc:
            return NoAnswer(f"{address}: {exc or type(exc).__name__}")
        code = answer.rcode()
        if code == dns.rcode.NXDOMAIN:
            return NoSuchName(name)
        if code != dns.rcode.NOERROR:
            return NoAnswer(f"{address}: {dns.rcode.to_text(code)}")
        return _addresses(answer, kind)

    try:
        async with asyncio.timeout(timeout):
            results = await asyncio.gather(*(ask_kind(kind) for kind in kinds))
    except TimeoutError as exc:
        raise NoAnswer(f"{address}: no answer within {timeout:g} s") from exc
    addresses = tuple(address for result in results if isinstance(result, tuple) for address in result)
    if addresses:
        return addresses
    for kind in (NoSuchName, NoAnswer):
        for result in results:
            if isinstance(result, kind):
                raise result
    return ()


def _addresses(answer: dns.message.Message, kind: str) -> tuple[str, ...]:
    """Return the addresses of an answer, through its own aliases."""
    family = dns.rdatatype.from_text(kind)
    if not isinstance(answer, dns.message.QueryMessage):
        return ()
    try:
        rrset = answer.resolve_chaining().answer
    except dns.exception.DNSException:
        return ()
    if rrset is None or rrset.rdtype != family:
        return ()
    plain = (plain_address(str(record.address)) for record in rrset)
    addresses = [address for address in plain if address is not None][:MAX_ADDRESSES]
    random.shuffle(addresses)  # load is spread over equals
    return tuple(addresses)
