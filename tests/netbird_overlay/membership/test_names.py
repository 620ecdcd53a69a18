"""Names that are dialed through the node: domain routes, zones, name servers, in this order and with their limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from netbird_overlay.errors import Failed, Unreachable
from netbird_overlay.membership.name_servers import (
    MAX_SERVERS,
    Server,
    ServerGroup,
    host_exchange,
    matching,
    read_groups,
)
from netbird_overlay.membership.names import MAX_KEPT, Names, read_names
from netbird_overlay.membership.zones import CNAME, A
from netbird_overlay.testing import LOOPBACK
from netbird_wire.management_pb2 import CustomZone, DNSConfig, NameServer, NameServerGroup, SimpleRecord

pytestmark = pytest.mark.timeout(30)

Reply = Callable[[dns.message.QueryMessage], dns.message.Message | Exception | None]


def group(*servers: str, domains: Sequence[str] = (), port: int = 0) -> NameServerGroup:
    listed = [NameServer(IP=address, NSType=1, Port=port) for address in servers]
    return NameServerGroup(NameServers=listed, Domains=domains, Primary=not domains)


def addresses(*found: str) -> Reply:
    def reply(query: dns.message.QueryMessage) -> dns.message.Message:
        answer = dns.message.make_response(query)
        question = query.question[0]
        kind = "AAAA" if question.rdtype == dns.rdatatype.AAAA else "A"
        listed = [text for text in found if (":" in text) == (kind == "AAAA")]
        if listed:
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, *listed))
        return dns.message.from_wire(answer.to_wire())

    return reply


def code(number: dns.rcode.Rcode) -> Reply:
    def reply(query: dns.message.QueryMessage) -> dns.message.Message:
        answer = dns.message.make_response(query)
        answer.set_rcode(number)
        return answer

    return reply


def fails(query: dns.message.QueryMessage) -> Exception:
    return dns.exception.Timeout()


def hangs(query: dns.message.QueryMessage) -> None:
    return None


class Servers:
    """Scripted name servers by address. `asked` are the addresses of the queries, in order."""

    def __init__(self, **replies: Reply) -> None:
        self.replies: dict[str, Reply] = {}
        self.asked: list[str] = []
        self.gone = 0

    async def __call__(
        self, query: dns.message.Message, address: str, port: int, timeout: float
    ) -> dns.message.Message:
        self.asked.append(address)
        assert isinstance(query, dns.message.QueryMessage)
        reply = self.replies[address](query)
        if reply is None:
            try:
                await asyncio.Event().wait()
            finally:
                self.gone += 1
        if isinstance(reply, Exception):
            raise reply
        assert isinstance(reply, dns.message.Message)
        return reply


def names_of(servers: Servers, *groups: NameServerGroup, zones: Sequence[CustomZone] = (), ipv6: bool = False) -> Names:
    names = Names(ipv6=ipv6, exchange=servers)
    names.use(read_names(DNSConfig(ServiceEnable=True, NameServerGroups=groups, CustomZones=zones)))
    return names


def test_only_servers_elsewhere_are_asked() -> None:
    """An address of this machine, of its link or of its cloud's metadata is no name server of an account."""
    bad = ["127.0.0.1", "127.9.9.9", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "::", "224.0.0.1", "junk", ""]
    bad += ["::ffff:127.0.0.1", "255.255.255.255"]
    groups = read_groups([group(*bad, "192.0.2.53", "10.0.0.53"), group(*bad), group("192.0.2.54", port=70000)])
    assert groups == (ServerGroup((Server("192.0.2.53", 53), Server("10.0.0.53", 53))),)
    assert len(read_groups([group(*[f"192.0.2.{n}" for n in range(1, 50)])])[0].servers) == MAX_SERVERS


def test_longer_domains_go_first_and_primary_groups_last() -> None:
    """Groups of one length are asked at once, and a group of other domains is not asked."""
    primary, corp, deep, other, twin = read_groups(
        [
            group("192.0.2.1"),
            group("192.0.2.2", domains=["corp.example"]),
            group("192.0.2.3", domains=["Deep.Corp.Example."]),
            group("192.0.2.4", domains=["example.org"]),
            group("192.0.2.5", domains=["corp.example"]),
        ]
    )
    assert matching((primary, corp, deep, other, twin), "x.deep.corp.example") == [[deep], [corp, twin], [primary]]
    assert matching((primary, corp, deep, other, twin), "xcorp.example") == [[primary]]


async def test_a_name_server_answers() -> None:
    """Both families are asked for where the node has IPv6, and an answer is kept for a while."""
    servers = Servers()
    servers.replies["192.0.2.1"] = addresses("10.1.1.1", "fd00::7")
    names = names_of(servers, group("192.0.2.1"), ipv6=True)
    assert list(await names.resolve("Wiki.Example.")) == ["10.1.1.1", "fd00::7"]
    assert list(await names.resolve("wiki.example")) == ["10.1.1.1", "fd00::7"]
    assert len(servers.asked) == 2


@pytest.mark.parametrize("first", [fails, code(dns.rcode.SERVFAIL), code(dns.rcode.REFUSED)])
async def test_a_server_that_fails_is_followed_by_the_next(first: Reply) -> None:
    """Failures move on to the group's next server, and then to the next group."""
    servers = Servers()
    servers.replies |= {"192.0.2.1": first, "192.0.2.2": addresses("10.1.1.1"), "192.0.2.3": first}
    names = names_of(servers, group("192.0.2.1", "192.0.2.2"), group("192.0.2.3", domains=["example"]))
    assert list(await names.resolve("wiki.example")) == ["10.1.1.1"]
    assert servers.asked == ["192.0.2.3", "192.0.2.1", "192.0.2.2"]


async def test_a_name_that_does_not_exist_is_final() -> None:
    """No other server is asked after one said that the name does not exist."""
    servers = Servers()
    servers.replies |= {"192.0.2.1": code(dns.rcode.NXDOMAIN), "192.0.2.2": addresses("10.1.1.1")}
    with pytest.raises(Unreachable, match="does not exist"):
        await names_of(servers, group("192.0.2.1", "192.0.2.2")).resolve("wiki.example")
    assert servers.asked == ["192.0.2.1"]


async def test_groups_of_one_domain_race() -> None:
    """A server that hangs delays no other group, and is no longer waited for once one has answered."""
    servers = Servers()
    servers.replies |= {"192.0.2.1": hangs, "192.0.2.2": fails, "192.0.2.3": addresses("10.1.1.1")}
    names = names_of(servers, *(group(f"192.0.2.{n}", domains=["example"]) for n in (1, 2, 3)))
    assert list(await names.resolve("wiki.example")) == ["10.1.1.1"]
    assert servers.gone == 1


async def test_an_answer_to_another_query_is_none() -> None:
    """A response whose question is not the one that was sent is not believed."""

    def forged(query: dns.message.QueryMessage) -> dns.message.Message | Exception | None:
        other = dns.message.make_query("bank.example", "A")
        other.id = query.id
        return addresses("10.6.6.6")(other)

    servers = Servers()
    servers.replies["192.0.2.1"] = forged
    with pytest.raises(Unreachable, match="another query"):
        await names_of(servers, group("192.0.2.1")).resolve("wiki.example")


@pytest.mark.parametrize("name", ["", ".", "a" * 300, "b\xfccher.example"])
async def test_nonsense_is_asked_nowhere(name: str) -> None:
    """A name that DNS cannot have is refused before any query."""
    servers = Servers()
    with pytest.raises(Unreachable):
        await names_of(servers, group("192.0.2.1")).resolve(name)
    assert servers.asked == []


async def test_zones_go_before_servers() -> None:
    """A zone's own answers need no query; a name in an authoritative zone that does not exist is final."""
    servers = Servers()
    servers.replies["192.0.2.1"] = addresses("10.1.1.1")
    records = [
        SimpleRecord(Name="wiki.example", Type=A, Class="IN", RData="100.64.0.9"),
        SimpleRecord(Name="out.example", Type=CNAME, Class="IN", RData="elsewhere.test"),
    ]
    system: list[str] = []

    async def host(name: str) -> Sequence[str]:
        system.append(name)
        return ["192.0.2.80"]

    names = Names(ipv6=False, exchange=servers, system=host)
    zone = CustomZone(Domain="example", Records=records)
    config = DNSConfig(ServiceEnable=True, NameServerGroups=[group("192.0.2.1")], CustomZones=[zone])
    names.use(read_names(config))
    assert list(await names.resolve("wiki.example")) == ["100.64.0.9"]
    assert names.local("wiki.example") == ("100.64.0.9",)
    with pytest.raises(Unreachable):
        await names.resolve("nobody.example")
    assert servers.asked == []
    assert list(await names.resolve("out.example")) == ["192.0.2.80"]
    assert system == ["elsewhere.test"]


async def test_an_alias_that_leads_nowhere_fails() -> None:
    """The host's resolver may fail; the dial then names the alias."""
    record = SimpleRecord(Name="out.example", Type=CNAME, Class="IN", RData="elsewhere.test")

    async def host(name: str) -> Sequence[str]:
        raise OSError("no such host")

    names = Names(ipv6=False, system=host)
    names.use(read_names(DNSConfig(ServiceEnable=True, CustomZones=[CustomZone(Domain="example", Records=[record])])))
    with pytest.raises(Failed, match=r"elsewhere\.test"):
        await names.resolve("out.example")


async def test_nothing_resolves_while_the_service_is_off() -> None:
    """Neither zones nor servers are used while management has DNS switched off, and answers are forgotten."""
    servers = Servers()
    servers.replies["192.0.2.1"] = addresses("10.1.1.1")
    names = names_of(servers, group("192.0.2.1"))
    await names.resolve("wiki.example")
    names.use(read_names(DNSConfig(NameServerGroups=[group("192.0.2.1")])))
    with pytest.raises(Unreachable):
        await names.resolve("wiki.example")


async def test_kept_answers_are_bounded() -> None:
    """Any number of names leaves a limited number of kept answers."""
    servers = Servers()
    servers.replies["192.0.2.1"] = addresses("10.1.1.1")
    names = names_of(servers, group("192.0.2.1"))
    for number in range(MAX_KEPT + 10):
        await names.resolve(f"n{number}.example")
    assert len(names._kept) == MAX_KEPT


async def test_a_server_is_asked_over_the_host_network() -> None:
    """A query goes out by UDP, and again by TCP if its answer was cut."""
    answered: list[str] = []

    class Datagrams(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.DatagramTransport, transport)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            answered.append("udp")
            response = dns.message.make_response(dns.message.from_wire(data))
            response.flags |= dns.flags.TC
            self.transport.sendto(response.to_wire(), addr)

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answered.append("tcp")
        query = dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
        assert isinstance(query, dns.message.QueryMessage)
        response = addresses("10.1.1.1")(query)
        assert isinstance(response, dns.message.Message)
        wire = response.to_wire()
        writer.write(len(wire).to_bytes(2, "big") + wire)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(stream, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Datagrams, local_addr=(LOOPBACK, port))
    async with server:
        answer = await host_exchange(dns.message.make_query("wiki.example", "A"), LOOPBACK, port, 5)
    transport.close()
    assert "10.1.1.1" in answer.to_text()
    assert answered == ["udp", "tcp"]
