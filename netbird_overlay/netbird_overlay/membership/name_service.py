"""Answers DNS queries of peers for the account's zones, for devices whose WireGuard app knows no zones of its own.

The first half is without sockets: a query's bytes in, an answer's bytes out. The second half serves it over UDP and TCP
(RFC 1035, RFC 7766). Everything that it answers is in the network map; a query for another name is refused, or passed
to name servers that the operator named. The host's own resolver is never asked: it knows names of the host's network,
which are no business of an account's peers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from netbird_overlay.driver import Driver
from netbird_overlay.membership.name_servers import (
    Exchange,
    NoAnswer,
    NoSuchName,
    Server,
    ServerGroup,
    ask_group,
    host_exchange,
)
from netbird_overlay.membership.zones import Outcome, Zones

ANSWER_SECONDS = 60
"""Time for which clients may keep an answer: an address that moves is followed within it."""
UDP_BYTES, PLAIN_UDP_BYTES = 1232, 512
"""Maximum size of an answer over UDP: with EDNS, which fits any path of IPv6 (DNS flag day 2020), and without."""
MAX_QUERY = 1024
"""Maximum size of a query; longer ones are dropped."""
QUERIES_AT_ONCE, QUERIES_OF_PEER = 256, 16
"""Queries that wait for a name server, in total and of one address; further ones are refused."""
QUERIES_A_SECOND = 200
"""Queries of one address in a second; further ones are dropped, because an answer costs more than a query."""
CONNECTIONS_OF_PEER, IDLE_SECONDS = 8, 10.0
"""TCP connections of one address, and time in seconds until one without a query is closed."""

DNS_PORT = 53
Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Returns the addresses of a folded name outside the zones. Raises NoSuchName, NoAnswer."""


def forward_to(servers: Sequence[str], exchange: Exchange = host_exchange) -> Resolve:
    """Return a resolver that asks these name servers, addresses of the outside network, in order."""
    group = ServerGroup(tuple(Server(address, DNS_PORT) for address in servers))

    async def resolve(name: str) -> Sequence[str]:
        return await ask_group(group, name, ("A", "AAAA"), exchange)

    return resolve


class NameService:
    """The answers of one overlay node.

    Attributes:
        counters: totals of `queries`, `answered`, `refused`, `malformed`, `limited`, `forwarded`, `failed`.

    Args:
        zones: returns the zones of the map in force.
        clock: returns seconds, monotonic.
        forward: resolves names outside the zones; None refuses them.
    """

    def __init__(
        self, zones: Callable[[], Zones], *, clock: Callable[[], float], forward: Resolve | None = None
    ) -> None:
        self._zones = zones
        self._clock = clock
        self._forward = forward
        self._waiting: Counter[str] = Counter()
        self._second, self._in_second = -1, Counter[str]()
        self.counters: Counter[str] = Counter()

    def admit(self, source: str) -> bool:
        """Count a query of this address. False if it sent too many in this second; the query is then to be dropped."""
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._in_second.clear()
        self._in_second[source] += 1
        if self._in_second[source] <= QUERIES_A_SECOND:
            return True
        self.counters["limited"] += 1
        return False

    async def answer(self, query: bytes, source: str, *, tcp: bool = False) -> bytes | None:
        """Return the answer to a query; None if the bytes are no query and get none.

        Args:
            source: the peer's address, for its share of the queries that wait.
        """
        self.counters["queries"] += 1
        if len(query) > MAX_QUERY:
            self.counters["malformed"] += 1
            return None
        try:
            request = dns.message.from_wire(query)
        except (dns.exception.DNSException, ValueError):
            self.counters["malformed"] += 1
            return _format_error(query)
        if request.flags & dns.flags.QR:
            self.counters["malformed"] += 1
            return None
        response = dns.message.make_response(request, recursion_available=self._forward is not None)
        response.set_rcode(await self._fill(request, response, source))
        self.counters["refused" if response.rcode() == dns.rcode.REFUSED else "answered"] += 1
        return _wire(request, response, tcp=tcp)

    async def _fill(self, request: dns.message.Message, response: dns.message.Message, source: str) -> dns.rcode.Rcode:
        if request.opcode() != dns.opcode.QUERY:
            return dns.rcode.NOTIMP
        if len(request.question) != 1:
            return dns.rcode.FORMERR
        (question,) = request.question
        if question.rdclass != dns.rdataclass.IN:
            return dns.rcode.REFUSED
        name = question.name.to_text(omit_final_dot=True).lower()
        zone = self._zones().zone_of(name)
        if zone is None:
            return await self._elsewhere(question, response, name, source)
        if question.rdtype == dns.rdatatype.ANY:  # RFC 8482: no list of all records
            response.answer.append(_record(question.name, dns.rdatatype.HINFO, '"RFC8482" ""'))
            return dns.rcode.NOERROR
        answer = self._zones().lookup(name)
        if answer.outcome is Outcome.ELSEWHERE:
            return await self._elsewhere(question, response, name, source)
        response.flags |= dns.flags.AA
        if answer.outcome is Outcome.ALIAS:
            alias = _record(question.name, dns.rdatatype.CNAME, answer.alias + ".")
            response.answer.append(alias)
            if self._forward is not None:
                target = dns.name.from_text(answer.alias)
                rcode = await self._resolved(question, response, target, answer.alias, source)
                return dns.rcode.NOERROR if rcode == dns.rcode.NXDOMAIN else rcode
            return dns.rcode.NOERROR
        _add_addresses(response, question.name, question.rdtype, answer.addresses)
        if not response.answer:
            response.authority.append(_authority(zone))
        return dns.rcode.NXDOMAIN if answer.outcome is Outcome.MISSING else dns.rcode.NOERROR

    async def _elsewhere(
        self, question: dns.rrset.RRset, response: dns.message.Message, name: str, source: str
    ) -> dns.rcode.Rcode:
        if self._forward is None or not name:
            return dns.rcode.REFUSED
        return await self._resolved(question, response, question.name, name, source)

    async def _resolved(
        self, question: dns.rrset.RRset, response: dns.message.Message, owner: dns.name.Name, name: str, source: str
    ) -> dns.rcode.Rcode:
        """Add the addresses that the operator's name servers have for a name."""
        if self._forward is None or question.rdtype not in (dns.rdatatype.A, dns.rdatatype.AAAA):
            return dns.rcode.NOERROR
        if self._waiting.total() >= QUERIES_AT_ONCE or self._waiting[source] >= QUERIES_OF_PEER:
            return dns.rcode.REFUSED
        self._waiting[source] += 1
        try:
            addresses = await self._forward(name)
        except NoSuchName:
            return dns.rcode.NXDOMAIN
        except NoAnswer:
            self.counters["failed"] += 1
            return dns.rcode.SERVFAIL
        finally:
            self._waiting[source] -= 1
            if not self._waiting[source]:
                del self._waiting[source]
        self.counters["forwarded"] += 1
        _add_addresses(response, owner, question.rdtype, addresses)
        return dns.rcode.NOERROR


def _add_addresses(
    response: dns.message.Message, owner: dns.name.Name, kind: dns.rdatatype.RdataType, addresses: Sequence[str]
) -> None:
    version = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 6}.get(kind)
    fitting = [address for address in addresses if ip_address(address).version == version]
    if fitting:
        response.answer.append(dns.rrset.from_text_list(owner, ANSWER_SECONDS, dns.rdataclass.IN, kind, fitting))


def _record(owner: dns.name.Name, kind: dns.rdatatype.RdataType, text: str) -> dns.rrset.RRset:
    return dns.rrset.from_text(owner, ANSWER_SECONDS, dns.rdataclass.IN, kind, text)


def _authority(zone: str) -> dns.rrset.RRset:
    """Return the zone's SOA, which tells clients how long they may keep that something does not exist (RFC 2308)."""
    text = f"{zone}. hostmaster.{zone}. 1 3600 600 86400 {ANSWER_SECONDS}"
    return _record(dns.name.from_text(zone), dns.rdatatype.SOA, text)


def _wire(request: dns.message.Message, response: dns.message.Message, *, tcp: bool) -> bytes:
    if tcp:
        return response.to_wire(max_size=65_535)
    if request.edns >= 0:
        response.use_edns(0, payload=UDP_BYTES)
        size = min(max(request.payload, PLAIN_UDP_BYTES), UDP_BYTES)
    else:
        size = PLAIN_UDP_BYTES
    try:
        return response.to_wire(max_size=size)
    except dns.exception.TooBig:
        response.answer.clear()
        response.authority.clear()
        response.flags |= dns.flags.TC
        return response.to_wire(max_size=size)


def _format_error(query: bytes) -> bytes | None:
    """Return FORMERR for bytes that begin as a query does; None for all others, a stray response among them."""
    if len(query) < 12 or query[2] & 0x80:
        return None
    flags = (query[2] & 0x79, 0x00 | dns.rcode.FORMERR)
    return query[:2] + bytes((flags[0] | 0x80, flags[1])) + bytes(8)


class DatagramService(asyncio.DatagramProtocol):
    """Serves a name service over UDP. Each query is a task of `tasks`, so a slow resolver holds up no other query."""

    def __init__(self, service: NameService, tasks: asyncio.TaskGroup) -> None:
        self._service = service
        self._tasks = tasks
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._service.admit(addr[0]):
            self._tasks.create_task(self._answer(data, addr))

    async def _answer(self, query: bytes, source: tuple[str, int]) -> None:
        answer = await self._service.answer(query, source[0])
        if answer is not None and self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(answer, source)


class StreamService:
    """Serves a name service over TCP: the connections of peers, a bounded number of each."""

    def __init__(self, service: NameService, tasks: asyncio.TaskGroup) -> None:
        self.service = service
        self.tasks = tasks
        self.connections: Counter[str] = Counter()

    def __call__(self) -> asyncio.Protocol:
        return _Stream(self)


class _Stream(asyncio.Protocol):
    """One connection. Its queries are answered one after another, so their answers never outgrow one at a time."""

    def __init__(self, server: StreamService) -> None:
        self._server = server
        self._received = bytearray()
        self._answering = False
        self._counted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._source = str(self._transport.get_extra_info("peername")[0])
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._transport.abort)
        if self._server.connections[self._source] >= CONNECTIONS_OF_PEER:
            self._transport.abort()
            return
        self._server.connections[self._source] += 1
        self._counted = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle.cancel()
        if self._counted:
            self._server.connections[self._source] -= 1
            if not self._server.connections[self._source]:
                del self._server.connections[self._source]

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._answering:
            self._next()

    def _next(self) -> None:
        """Take the next complete query, if there is one. Reading pauses while it is answered."""
        if len(self._received) < 2:
            return
        length = int.from_bytes(self._received[:2], "big")
        if length > MAX_QUERY:
            self._transport.abort()
            return
        if len(self._received) < 2 + length:
            return
        query = bytes(self._received[2 : 2 + length])
        del self._received[: 2 + length]
        if not self._server.service.admit(self._source):
            self._transport.abort()
            return
        self._answering = True
        self._transport.pause_reading()
        self._server.tasks.create_task(self._answer(query))

    async def _answer(self, query: bytes) -> None:
        answer = await self._server.service.answer(query, self._source, tcp=True)
        self._answering = False
        if self._transport.is_closing():
            return
        if answer is None:
            self._transport.abort()
            return
        self._transport.write(len(answer).to_bytes(2, "big") + answer)
        self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._transport.abort)
        self._transport.resume_reading()
        self._next()


async def serve_names(driver: Driver, service: NameService) -> None:
    """Answer queries at the node's own addresses, as far as its inbound rules admit them. Returns when cancelled.

    Raises AlreadyListening, Failed.
    """
    async with asyncio.TaskGroup() as tasks:
        driver.listen(DNS_PORT, StreamService(service, tasks))
        try:
            transport, _ = driver.datagram_endpoint(lambda: DatagramService(service, tasks), port=DNS_PORT)
            try:
                await asyncio.Event().wait()
            finally:
                transport.close()
        finally:
            driver.unlisten(DNS_PORT)
