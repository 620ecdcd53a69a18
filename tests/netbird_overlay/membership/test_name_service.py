"""The name service of a node: answers for the account's zones, refusals for the rest, and peers that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.membership import name_service
from netbird_overlay.membership.name_servers import NoAnswer, NoSuchName
from netbird_overlay.membership.name_service import DatagramService, NameService, StreamService
from netbird_overlay.membership.zones import AAAA, CNAME, A, Zones
from netbird_wire.management_pb2 import CustomZone, SimpleRecord

PEER = "100.64.0.9"


def zone(domain: str, *records: tuple[str, int, str]) -> CustomZone:
    made = [SimpleRecord(Name=name, Type=kind, Class="IN", TTL=300, RData=value) for name, kind, value in records]
    return CustomZone(Domain=domain, Records=made)


ZONES = Zones(
    [
        zone(
            "example",
            ("wiki.example", A, "100.64.0.1"),
            ("wiki.example", AAAA, "fd00::1"),
            ("only4.example", A, "100.64.0.2"),
            ("*.apps.example", A, "100.64.0.3"),
            ("www.example", CNAME, "wiki.example"),
            ("out.example", CNAME, "elsewhere.test"),
        ),
        zone("large.test", *(("all.large.test", A, f"100.64.{i // 250}.{i % 250 + 1}") for i in range(300))),
    ]
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Host:
    """A name server of the operator; a name without addresses does not exist, and `gate` holds its answers back."""

    def __init__(self, **names: Sequence[str]) -> None:
        self.names = names
        self.asked: list[str] = []
        self.arrivals: asyncio.Queue[str] = asyncio.Queue()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, name: str) -> Sequence[str]:
        self.asked.append(name)
        self.arrivals.put_nowait(name)
        await self.gate.wait()
        if name == "silent.test":
            raise NoAnswer("no answer")
        if name not in self.names:
            raise NoSuchName(name)
        return self.names[name]


def service(host: Host | None = None, clock: Clock | None = None) -> NameService:
    return NameService(lambda: ZONES, clock=clock or Clock(), forward=host)


async def ask(
    names: NameService, name: str, kind: str = "A", *, tcp: bool = False, edns: int | None = None, source: str = PEER
) -> dns.message.Message:
    query = dns.message.make_query(name, kind, use_edns=edns is not None, payload=edns or 0)
    answer = await names.answer(query.to_wire(), source, tcp=tcp)
    assert answer is not None
    message = dns.message.from_wire(answer)
    assert message.id == query.id
    assert message.question == query.question
    return message


def addresses(message: dns.message.Message) -> list[str]:
    return [record.to_text() for rrset in message.answer for record in rrset]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("wiki.example", "A", ["100.64.0.1"]),
        ("WIKI.Example.", "A", ["100.64.0.1"]),
        ("wiki.example", "AAAA", ["fd00::1"]),
        ("www.example", "A", ["100.64.0.1"]),
        ("any.apps.example", "A", ["100.64.0.3"]),
        ("only4.example", "AAAA", []),
        ("wiki.example", "TXT", []),
    ],
)
async def test_names_of_the_accounts_zones(name: str, kind: str, expected: list[str]) -> None:
    message = await ask(service(), name, kind)

    assert message.rcode() == dns.rcode.NOERROR
    assert message.flags & dns.flags.AA
    assert addresses(message) == expected
    assert bool(message.authority) is not bool(expected)


async def test_a_name_that_does_not_exist_is_denied_with_the_time_for_which_that_holds() -> None:
    message = await ask(service(), "nobody.example")

    assert message.rcode() == dns.rcode.NXDOMAIN
    assert message.authority[0].rdtype == dns.rdatatype.SOA


async def test_other_names_are_refused_unless_the_operator_forwards_them() -> None:
    host = Host(**{"elsewhere.test": ["192.0.2.1", "2001:db8::1"]})

    assert (await ask(service(), "elsewhere.test")).rcode() == dns.rcode.REFUSED
    assert (await ask(service(), ".", "NS")).rcode() == dns.rcode.REFUSED
    forwarding = service(host)
    assert addresses(await ask(forwarding, "elsewhere.test")) == ["192.0.2.1"]
    assert addresses(await ask(forwarding, "elsewhere.test", "AAAA")) == ["2001:db8::1"]
    assert (await ask(forwarding, "unknown.test")).rcode() == dns.rcode.NXDOMAIN
    assert (await ask(forwarding, "silent.test")).rcode() == dns.rcode.SERVFAIL
    assert (await ask(forwarding, "elsewhere.test", "MX")).rcode() == dns.rcode.NOERROR
    assert host.asked == ["elsewhere.test", "elsewhere.test", "unknown.test", "silent.test"]


async def test_an_alias_out_of_the_zones() -> None:
    """Without forwarding the client gets the alias itself; with it, the address behind the alias too."""
    assert addresses(await ask(service(), "out.example")) == ["elsewhere.test."]
    forwarding = service(Host(**{"elsewhere.test": ["192.0.2.1"]}))
    assert addresses(await ask(forwarding, "out.example")) == ["elsewhere.test.", "192.0.2.1"]


async def test_a_large_answer_is_cut_over_udp_and_whole_over_tcp() -> None:
    for edns in (None, 4096):
        cut = await ask(service(), "all.large.test", edns=edns)
        assert cut.flags & dns.flags.TC
        assert cut.answer == []
    whole = await ask(service(), "all.large.test", tcp=True)
    assert len(addresses(whole)) == 300


async def test_a_query_for_any_record_gets_no_list() -> None:
    message = await ask(service(), "wiki.example", "ANY")

    assert [rrset.rdtype for rrset in message.answer] == [dns.rdatatype.HINFO]


@pytest.mark.parametrize(
    ("flags", "rcode"), [(dns.flags.RD, dns.rcode.NOERROR), (2 << 11, dns.rcode.NOTIMP), (dns.flags.QR, None)]
)
async def test_only_queries_are_answered(flags: int, rcode: dns.rcode.Rcode | None) -> None:
    """A response gets no answer: two servers that answer each other's answers would never end."""
    query = dns.message.make_query("wiki.example", "A")
    wire = bytearray(query.to_wire())
    wire[2:4] = flags.to_bytes(2, "big")

    answer = await service().answer(bytes(wire), PEER)

    assert (answer is None) is (rcode is None)
    if answer is not None:
        assert dns.message.from_wire(answer).rcode() == rcode


async def test_no_question_two_questions_and_another_class() -> None:
    query = dns.message.make_query("wiki.example", "A")
    nothing = query.to_wire()[:4] + bytes(8)
    chaos = dns.message.make_query("wiki.example", "A", rdclass="CH").to_wire()

    for wire, rcode in ((nothing, dns.rcode.FORMERR), (chaos, dns.rcode.REFUSED)):
        answer = await service().answer(wire, PEER)
        assert answer is not None
        assert dns.message.from_wire(answer).rcode() == rcode


@given(st.one_of(st.binary(max_size=1100), st.binary(max_size=64).map(lambda tail: bytes(12) + tail)))
def test_nonsense_raises_nothing_and_gets_no_more_than_it_is(query: bytes) -> None:
    """A datagram is answered with at most a header, unless it is a query."""
    answer = asyncio.run(service().answer(query, PEER))

    assert answer is None or len(answer) <= max(len(query), 12) + 200


async def test_promise_10_a_peer_that_floods_leaves_others_their_answers() -> None:
    """Queries in a second, and queries that wait for the host's resolver, are counted by address."""
    clock, host = Clock(), Host(**{"slow.test": ["192.0.2.1"]})
    names = service(host, clock)
    assert [names.admit(PEER) for _ in range(name_service.QUERIES_A_SECOND + 1)].count(False) == 1
    assert names.admit("100.64.0.10")
    clock.now = 1.0
    assert names.admit(PEER)

    host.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(ask(names, "slow.test", source=PEER)) for _ in range(name_service.QUERIES_OF_PEER)]
        for _ in waiting:
            await host.arrivals.get()
        assert (await ask(names, "slow.test", source=PEER)).rcode() == dns.rcode.REFUSED
        other = tasks.create_task(ask(names, "slow.test", source="100.64.0.10"))
        host.gate.set()
    assert {message.rcode() for message in (*(task.result() for task in waiting), other.result())} == {0}


async def test_over_udp_a_slow_name_holds_up_no_other() -> None:
    host = Host(**{"slow.test": ["192.0.2.1"]})
    host.gate.clear()
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        server, _ = await loop.create_datagram_endpoint(
            lambda: DatagramService(service(host), tasks), local_addr=("127.0.0.1", 0)
        )
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        class Client(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
                answers.put_nowait(data)

        client, _ = await loop.create_datagram_endpoint(Client, remote_addr=server.get_extra_info("sockname"))
        for name in ("slow.test", "wiki.example"):
            client.sendto(dns.message.make_query(name, "A").to_wire())
        assert addresses(dns.message.from_wire(await answers.get())) == ["100.64.0.1"]
        host.gate.set()
        assert addresses(dns.message.from_wire(await answers.get())) == ["192.0.2.1"]
        client.close()
        server.close()


async def read_answer(reader: asyncio.StreamReader) -> dns.message.Message:
    length = int.from_bytes(await reader.readexactly(2), "big")
    return dns.message.from_wire(await reader.readexactly(length))


def framed(name: str) -> bytes:
    query = dns.message.make_query(name, "A").to_wire()
    return len(query).to_bytes(2, "big") + query


async def test_over_tcp_queries_come_in_pieces_and_one_after_another() -> None:
    async with asyncio.TaskGroup() as tasks:
        server = await asyncio.get_running_loop().create_server(StreamService(service(), tasks), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for byte in framed("wiki.example") + framed("all.large.test"):
                writer.write(bytes((byte,)))
                await writer.drain()
            for number in (1, 300):
                assert len(addresses(await read_answer(reader))) == number
            writer.write(b"\xff\xff")
            with pytest.raises((ConnectionError, EOFError)):
                await reader.readexactly(1)
            writer.close()


async def test_promise_10_a_peer_has_a_bounded_number_of_connections() -> None:
    async with asyncio.TaskGroup() as tasks:
        server = await asyncio.get_running_loop().create_server(StreamService(service(), tasks), "127.0.0.1", 0)
        async with server:
            place = server.sockets[0].getsockname()
            streams = [await asyncio.open_connection(*place) for _ in range(name_service.CONNECTIONS_OF_PEER + 1)]
            try:
                for reader, writer in streams[:-1]:
                    writer.write(framed("wiki.example"))
                    assert addresses(await read_answer(reader)) == ["100.64.0.1"]
                with pytest.raises((ConnectionError, EOFError)):
                    await streams[-1][0].readexactly(1)
            finally:
                for _, writer in streams:
                    writer.close()
