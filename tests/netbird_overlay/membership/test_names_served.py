"""A joined node answers its peers' DNS queries over the overlay, for those that a rule of its map admits."""

from __future__ import annotations

import asyncio

import dns.message
import dns.rcode
import pytest

from netbird_overlay.errors import ConnectError
from netbird_overlay.testing import Recorder
from netbird_wire.management_pb2 import ACCEPT, IN, TCP, CustomZone, DNSConfig, FirewallRule, PortInfo, SimpleRecord
from tests.netbird_overlay.membership.agents import Agent, agent
from tests.netbird_overlay.paths.house import servers

pytestmark = pytest.mark.timeout(60)

PHONE, STRANGER, PROXY = "100.64.0.1", "100.64.0.2", "100.64.0.3"
WIKI = CustomZone(
    Domain="proxy.example", Records=[SimpleRecord(Name="wiki.proxy.example", Type=1, Class="IN", TTL=60, RData=PROXY)]
)


class Answers(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.received.put_nowait(data)


def answer(data: bytes) -> list[str]:
    message = dns.message.from_wire(data)
    assert message.rcode() == dns.rcode.NOERROR
    return [record.to_text() for rrset in message.answer for record in rrset]


async def reachable(member: Agent) -> None:
    """Wait for a path to the proxy's node: a dial of its page takes one."""
    _, page = await member.node.dial(Recorder, PROXY, 80, timeout=20)
    assert isinstance(page, Recorder)


async def test_a_phone_asks_the_tunnel_for_the_accounts_names() -> None:
    """Over UDP and TCP; the rule that admits it to the services admits its queries, and no other peer's."""
    query = dns.message.make_query("wiki.proxy.example", "A").to_wire()
    admitted = [
        FirewallRule(
            PeerIP=PHONE, Direction=IN, Action=ACCEPT, Protocol=TCP, PortInfo=PortInfo(port=80), sourcePrefixes=[]
        )
    ]
    async with (
        servers() as group,
        agent(group, PHONE) as phone,
        agent(group, STRANGER) as stranger,
        agent(group, PROXY, answer_names=True) as proxy,
    ):
        for member in (phone, stranger):
            member.management.set_map(peers=[proxy.entry()])
        proxy.management.set_map(
            peers=[phone.entry(), stranger.entry()],
            rules=admitted,
            dns=DNSConfig(ServiceEnable=True, CustomZones=[WIKI]),
        )
        await proxy.until(lambda: proxy.node.members)
        proxy.node.listen(80, Recorder)
        for member in (phone, stranger):
            await member.until(lambda member=member: member.node.members)
        await reachable(phone)

        transport, names = phone.node.driver.datagram_endpoint(Answers, remote=(PROXY, 53))
        assert isinstance(names, Answers)
        transport.sendto(query)
        assert answer(await names.received.get()) == [PROXY]
        _, stream = await phone.node.dial(Recorder, PROXY, 53, timeout=20)
        assert isinstance(stream, Recorder)
        stream.transport.write(len(query).to_bytes(2, "big") + query)
        length = int.from_bytes((await stream.has(2))[:2], "big")
        assert answer((await stream.has(2 + length))[2:]) == [PROXY]
        with pytest.raises(ConnectError):
            await stranger.node.dial(Recorder, PROXY, 53, timeout=1)
