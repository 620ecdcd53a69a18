"""Nodes that join a network meet through its signal server, by its relay and directly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from netbird_overlay.errors import Unreachable
from netbird_overlay.testing import Accepting, Recorder
from netbird_wire.management_pb2 import NetbirdConfig, SyncResponse
from tests.netbird_overlay.membership.agents import EVERYBODY, Agent, agent
from tests.netbird_overlay.paths.house import servers

pytestmark = pytest.mark.timeout(60)

A, B = "100.64.0.1", "100.64.0.2"


@asynccontextmanager
async def couple(*, ice: bool = False, relays: bool = True) -> AsyncIterator[tuple[Agent, Agent, Accepting]]:
    """Two agents in each other's map. The second listens on port 80."""
    async with (
        servers() as group,
        agent(group, A, ice=ice, relays=relays) as a,
        agent(group, B, ice=ice, relays=relays) as b,
    ):
        a.management.set_map(peers=[b.entry()], rules=EVERYBODY)
        b.management.set_map(peers=[a.entry()], rules=EVERYBODY)
        await b.until(lambda: b.node.members)
        await a.until(lambda: a.node.members)
        accepting = Accepting(lambda: Recorder(echo=True))
        b.node.listen(80, accepting)
        yield a, b, accepting


async def talk(a: Agent) -> Recorder:
    _, protocol = await a.node.dial(Recorder, B, 80, timeout=20)
    assert isinstance(protocol, Recorder)
    protocol.transport.write(b"hello")
    await protocol.has(5)
    return protocol


@pytest.mark.parametrize("ice", [False, True])
async def test_two_members_meet(ice: bool) -> None:
    """Neither knows where the other is; the map, the signal server, and relay or ICE bring them together."""
    async with couple(ice=ice) as (a, b, _):
        await talk(a)
        kind = "ice" if ice else "relay"
        await a.until(lambda: a.kind(b.node.public_key) == kind)
        assert a.joined is not None
        assert a.joined.membership.unreachable(B) == ""


async def test_members_meet_without_a_relay() -> None:
    """Where management names no relay, the direct path alone connects them."""
    async with couple(ice=True, relays=False) as (a, b, _):
        await talk(a)
        assert a.kind(b.node.public_key) == "ice"


async def test_a_connection_outlives_the_change_from_relay_to_direct() -> None:
    """A stream that began by relay goes on when the direct path replaces it."""
    async with couple(ice=True) as (a, b, _):
        stream = await talk(a)
        await a.until(lambda: a.kind(b.node.public_key) == "ice")
        stream.transport.write(b"still")
        await stream.has(10)


async def test_a_refresh_of_credentials_keeps_the_paths() -> None:
    """A message with a new relay token, and no map, changes neither path nor session; one without relay closes it."""
    async with couple() as (a, b, _):
        stream = await talk(a)
        assert a.management.config is not None
        before = a.node.driver.engine.counters()["handshakes"]
        a.management.send(SyncResponse(netbirdConfig=a.management.config))
        stream.transport.write(b"again")
        await stream.has(10)
        assert a.node.driver.engine.counters()["handshakes"] == before
        a.management.send(SyncResponse(netbirdConfig=NetbirdConfig()))
        await a.until(lambda: a.kind(b.node.public_key) == "none")
        assert a.joined is not None
        assert "no path" in a.joined.membership.unreachable(B)


async def test_a_peer_that_leaves_the_map_is_gone() -> None:
    """Its path closes with its connections, and it is met again when it comes back."""
    async with couple() as (a, b, _):
        stream = await talk(a)
        a.management.set_map()
        assert isinstance(await stream.lost, ConnectionAbortedError)
        with pytest.raises(Unreachable, match="no peer"):
            await a.node.dial(Recorder, B, 80, timeout=1)
        a.management.set_map(peers=[b.entry()], rules=EVERYBODY)
        await a.until(lambda: a.node.members)
        await talk(a)


async def test_leaving_ends_everything() -> None:
    """A node that leaves its network leaves no task, and its connections end."""
    before = asyncio.all_tasks()
    async with couple() as (a, _, accepting):
        stream = await talk(a)
        far = await accepting.next()
    assert far.lost.done()
    assert stream.lost.done()
    await asyncio.sleep(0)
    assert not {task.get_name() for task in asyncio.all_tasks() - before if A in task.get_name()}
