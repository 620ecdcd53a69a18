"""Names behind routing peers, asked through the tunnel by UDP and TCP, and dialed by their addresses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dns.exception
import dns.flags
import dns.message
import dns.rrset
import pytest

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.membership.applied_map import AppliedMap
from netbird_overlay.membership.forwarder import TunnelExchange
from netbird_overlay.network_map import OwnNode
from netbird_overlay.node import Node
from netbird_overlay.testing import LOOPBACK, Recorder, introduce, loopback_node
from netbird_wire.envelope import format_key
from netbird_wire.management_pb2 import DNSConfig, NetworkMap, RemotePeerConfig, Route

pytestmark = pytest.mark.timeout(30)

US, ROUTER, PORT = "100.64.0.1", "100.64.0.9", 22054
Reply = Callable[[dns.message.Message], bytes | None]


def answer(query: dns.message.Message, *, cut: bool = False) -> bytes:
    response = dns.message.make_response(query)
    if cut:
        response.flags |= dns.flags.TC
    else:
        assert isinstance(query, dns.message.QueryMessage)
        response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "192.0.2.7"))
    return response.to_wire()


def nonsense(query: dns.message.Message) -> bytes:
    other = dns.message.make_query("bank.example", "A")
    return answer(other)


class Forwarder:
    """A routing peer's DNS forwarder. `asked` has the transport of each query, in order."""

    def __init__(self, node: Node, *, udp: Reply | None, tcp: Reply | None) -> None:
        self.asked: list[str] = []
        if udp is not None:
            node.listen_datagrams(PORT, lambda: _Datagrams(self, udp))
        if tcp is not None:
            node.listen(PORT, lambda: _Stream(self, tcp))


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, forwarder: Forwarder, reply: Reply) -> None:
        self._forwarder, self._reply = forwarder, reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._forwarder.asked.append("udp")
        reply = self._reply(dns.message.from_wire(data))
        if reply is not None:
            self._transport.sendto(reply, addr)  # type: ignore[attr-defined]


class _Stream(asyncio.Protocol):
    def __init__(self, forwarder: Forwarder, reply: Reply) -> None:
        self._forwarder, self._reply = forwarder, reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._forwarder.asked.append("tcp")
        reply = self._reply(dns.message.from_wire(data[2:]))
        assert isinstance(self._transport, asyncio.Transport)
        if reply is None:
            self._transport.close()
        else:
            for piece in (len(reply).to_bytes(2, "big") + reply[:5], reply[5:]):
                self._transport.write(piece)


@asynccontextmanager
async def forwarder(*, udp: Reply | None, tcp: Reply | None = None) -> AsyncIterator[tuple[Forwarder, Node]]:
    async with loopback_node(US) as node, loopback_node(ROUTER) as router:
        introduce(node, router)
        introduce(router, node, where=False)
        router.driver.engine.set_inbound([("0.0.0.0/0", 6, 0, 65535), ("0.0.0.0/0", 17, 0, 65535)])
        yield Forwarder(router, udp=udp, tcp=tcp), node


async def ask(node: Node, timeout: float = 8.0) -> str:
    message = await TunnelExchange(node)(dns.message.make_query("wiki.corp.example", "A"), ROUTER, PORT, timeout)
    return message.to_text()


async def test_udp_is_asked_first() -> None:
    """One datagram each way suffices."""
    async with forwarder(udp=answer) as (made, node):
        assert "192.0.2.7" in await ask(node)
        assert made.asked == ["udp"]


async def test_an_answer_that_was_cut_is_asked_for_by_tcp() -> None:
    """The whole answer comes by a stream, in whatever pieces."""
    async with forwarder(udp=lambda query: answer(query, cut=True), tcp=answer) as (made, node):
        assert "192.0.2.7" in await ask(node)
        assert made.asked == ["udp", "tcp"]


@pytest.mark.parametrize("reply", [lambda query: None, nonsense, lambda query: b"\x00", lambda query: b""])
async def test_tcp_is_asked_where_udp_gives_no_answer(reply: Reply) -> None:
    """Silence and datagrams that are no answer to the query end in a question by TCP within the time."""
    async with forwarder(udp=reply, tcp=answer) as (made, node):
        assert "192.0.2.7" in await ask(node, 1.0)
        assert made.asked == ["udp", "tcp"]


@pytest.mark.parametrize("reply", [lambda query: None, lambda query: b"\x00" * 5])
async def test_a_forwarder_that_answers_nonsense_is_an_error(reply: Reply) -> None:
    """A stream that ends early, or has no DNS message, raises what the caller expects."""
    async with forwarder(udp=lambda query: answer(query, cut=True), tcp=reply) as (_, node):
        with pytest.raises((OSError, EOFError, dns.exception.DNSException)):
            await ask(node, 1.0)


async def test_a_name_behind_a_routing_peer_is_dialed() -> None:
    """The map has a domain route: the name is resolved by its routing peer, routed to it, and dialed through it."""
    behind = "10.50.0.7"

    def reply(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        assert isinstance(query, dns.message.QueryMessage)
        response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", behind))
        return response.to_wire()

    async with loopback_node(US) as node, loopback_node(ROUTER, behind) as router:
        introduce(router, node, where=False)
        router.driver.engine.set_inbound([("0.0.0.0/0", 6, 0, 65535), ("0.0.0.0/0", 17, 0, 65535)])
        Forwarder(router, udp=reply, tcp=None)
        router.listen(80, Recorder)
        endpoints = {router.public_key: Endpoint(LOOPBACK, router.driver.local_port)}
        applied = AppliedMap(node, None, inbound=True, endpoints=endpoints, connected=set())
        node.resolve = applied.resolve
        key = format_key(router.public_key)
        network_map = NetworkMap(
            remotePeers=[RemotePeerConfig(wgPubKey=key, allowedIps=[f"{ROUTER}/32"])],
            Routes=[Route(Peer=key, NetworkType=3, NetID="corp", Domains=["*.corp.example"])],
            DNSConfig=DNSConfig(ForwarderPort=PORT),
        )
        await applied.apply(network_map, OwnNode((US,), 1280))
        assert node.carrier(behind) is None
        await node.dial(Recorder, "wiki.corp.example", 80, timeout=10)
        assert node.carrier(behind) == router.public_key
        assert node.whois(behind) is None


async def test_no_forwarder_is_an_error() -> None:
    """A routing peer without a forwarder refuses, and an address of nobody is unreachable."""
    async with forwarder(udp=None) as (_, node):
        with pytest.raises((OSError, EOFError)):
            await ask(node, 1.0)
        with pytest.raises(ConnectionError, match="no peer"):
            await TunnelExchange(node)(dns.message.make_query("x.example", "A"), "100.64.0.99", PORT, 1.0)
