"""Two nodes reach each other through a real signal server and relay, and directly; parts are stopped and restarted."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import ip_network

import pytest

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.members import Member
from netbird_overlay.paths.roster import EAGER_PEERS
from netbird_overlay.paths.servers import PathServers, RemotePeer
from netbird_overlay.signal.messages import GoIdle
from netbird_overlay.testing import Accepting, Recorder, introduce, loopback_node
from netbird_wire.envelope import format_key
from tests.netbird_overlay.paths.house import (
    PORT,
    acquaint,
    couple,
    exchange,
    require_ipv6,
    resident,
    say,
    servers,
    token,
)


async def say_nothing(*_: object) -> None:
    """A relay's notice that it does not send."""


@pytest.mark.parametrize("ice", [False, True])
async def test_two_nodes_reach_each_other(ice: bool) -> None:
    async with servers() as group, resident("100.64.0.1", ice=ice) as a, resident("100.64.0.2", ice=ice) as b:
        accepting = Accepting()
        b.node.listen(PORT, accepting)
        for home in (a, b):
            home.paths.configure(group.configuration())
        acquaint(a, b)
        await exchange(a, b, accepting)
        kind = "ice" if ice else "relay"
        await a.until(lambda: a.kind(b) == kind)
        await b.until(lambda: b.kind(a) == kind)
        await exchange(a, b, accepting)
        state = a.paths.state(b.key)
        assert state.handshake is not None  # a connection was open, so there is a session
        if ice:
            assert state.endpoint is not None
            assert state.endpoint.port == b.node.driver.local_port
            assert state.local_type == "host"
            assert state.remote_type in ("host", "prflx")  # a check may arrive before the candidate does
        else:
            assert state.relay == group.relays["relay"].url


@pytest.mark.parametrize("scripted", [False, True])
async def test_a_connection_survives_the_relays_restart(scripted: bool) -> None:
    async with servers(scripted=scripted) as group, couple(group) as (a, b, accepting):
        transport, protocol = await a.node.dial(Recorder, b.address, PORT, timeout=15)
        far = await accepting.next()
        await group.stop("relay")
        for home, other in ((a, b), (b, a)):
            await home.until(lambda home=home, other=other: home.kind(other) == "none")  # type: ignore[misc]
        transport.write(b"written while no path exists")
        await group.start_relay(scripted=scripted)
        assert await far.has(28) == b"written while no path exists"
        far.transport.write(b"and back")
        assert isinstance(protocol, Recorder)
        assert await protocol.has(8) == b"and back"
        assert a.kind(b) == b.kind(a) == "relay"


async def test_a_direct_path_carries_on_while_signal_and_relay_are_away() -> None:
    async with servers() as group, couple(group, ice=True) as (a, b, accepting):
        await group.stop("relay")
        await group.stop("signal")
        await exchange(a, b, accepting)
        assert a.kind(b) == b.kind(a) == "ice"


async def test_paths_come_back_when_signal_comes_back_after_the_relay() -> None:
    async with servers() as group, couple(group) as (a, b, accepting):
        await group.stop("signal")
        await group.stop("relay")
        await a.until(lambda: a.kind(b) == "none")
        await group.start_relay()
        await group.start_signal()
        await a.until(lambda: a.kind(b) == "relay")
        await exchange(a, b, accepting)


@pytest.mark.parametrize("ice", [False, True])
async def test_a_peer_that_restarts_with_its_key_is_reached_again(ice: bool) -> None:
    async with servers() as group, resident("100.64.0.1", ice=ice) as a:
        a.paths.configure(group.configuration())
        key = secrets.token_bytes(32)
        for _ in range(3):
            async with resident("100.64.0.2", private_key=key, ice=ice) as b:
                accepting = Accepting()
                b.node.listen(PORT, accepting)
                b.paths.configure(group.configuration())
                acquaint(a, b)
                # The restarted end dials nothing: the offers of both ends renew the session.
                await exchange(a, b, accepting)


async def test_a_peer_that_restarts_unnoticed_is_reached_again() -> None:
    # The relay notices no end of the first connection, so it replaces it, and reports nothing to the other peer.
    async with servers(scripted=True) as group, resident("100.64.0.1") as a, AsyncExitStack() as old:
        a.paths.configure(group.configuration())
        key = secrets.token_bytes(32)
        first = await old.enter_async_context(resident("100.64.0.2", private_key=key))
        first.paths.configure(group.configuration())
        acquaint(a, first)
        await a.until(lambda: a.kind(first) == "relay" and a.paths.state(first.key).handshake is not None)
        group.scripted["relay"]._tell = say_nothing  # type: ignore[method-assign]
        await old.aclose()
        assert a.kind(first) == "relay"
        async with resident("100.64.0.2", private_key=key) as second:
            accepting = Accepting()
            second.node.listen(PORT, accepting)
            second.paths.configure(group.configuration())
            acquaint(second, a)
            await exchange(a, second, accepting)


@pytest.mark.parametrize("ice", [False, True])
async def test_a_peer_that_is_removed_and_added_again_is_reached_again(ice: bool) -> None:
    async with servers() as group, couple(group, ice=ice) as (a, b, accepting):
        a.node.set_members([], {})
        a.paths.set_peers([])
        assert a.kind(b) == "none"
        acquaint(a, b)
        await exchange(a, b, accepting)


@pytest.mark.parametrize("ice", [False, True])
async def test_a_peer_that_gets_another_address_keeps_its_path(ice: bool) -> None:
    """The node removes it from the engine and adds it again, with the path and session forgotten."""
    async with servers() as group, couple(group, ice=ice) as (a, b, accepting):
        b.address = "100.64.0.99"
        b.node.driver.engine.set_addresses([b.address])
        members = [Member(b.key, (b.address,))]
        a.node.retire(members)
        a.node.set_members(members, {})
        assert a.node.driver.engine.peer(b.key).endpoint is None  # type: ignore[union-attr]
        a.paths.set_peers([RemotePeer(b.key, "0.60.0")])
        await exchange(a, b, accepting)
        assert a.kind(b) == ("ice" if ice else "relay")


async def test_an_expired_token_is_replaced_by_the_next() -> None:
    async with servers() as group, resident("100.64.0.1") as a, resident("100.64.0.2") as b:
        accepting = Accepting()
        b.node.listen(PORT, accepting)
        a.paths.configure(group.configuration(access=token(-3600)))
        b.paths.configure(group.configuration())
        acquaint(a, b)
        await b.until_home()
        assert a.paths.home_relay == ""
        assert a.kind(b) == "none"
        a.paths.configure(PathServers(relay_token=token()))
        await exchange(a, b, accepting)


async def test_a_token_that_expires_leaves_open_paths_alone() -> None:
    async with servers() as group, couple(group) as (a, b, accepting):
        a.paths.configure(PathServers(relay_token=token(-3600)))
        await exchange(a, b, accepting)


async def test_peers_at_two_relays_meet_at_the_controllers() -> None:
    async with servers("one", "two") as group, couple(group, relays=(("one",), ("two",))) as (a, b, _):
        controller, name = (a, "one") if format_key(a.key) > format_key(b.key) else (b, "two")
        other = b if controller is a else a
        assert controller.paths.state(other.key).relay == group.relays[name].url
        assert other.paths.state(controller.key).relay == group.relays[name].url


async def test_relays_that_management_switches_off_end_their_paths() -> None:
    async with servers() as group, couple(group) as (a, b, accepting):
        a.paths.configure(PathServers(relays=()))
        await a.until(lambda: a.kind(b) == "none")
        a.paths.configure(group.configuration())
        await exchange(a, b, accepting)


async def test_another_signal_server_is_used_after_its_configuration() -> None:
    async with servers() as group, servers() as others, resident("100.64.0.1") as a, resident("100.64.0.2") as b:
        accepting = Accepting()
        b.node.listen(PORT, accepting)
        a.paths.configure(group.configuration())
        b.paths.configure(replace(group.configuration(), signal=others.configuration().signal))
        acquaint(a, b)
        await b.until_home()
        b.paths.configure(PathServers(signal=group.configuration().signal))
        await exchange(a, b, accepting)


async def test_a_dial_wakes_a_lazy_peer() -> None:
    async with servers() as group, couple(group, lazy=True) as (a, b, accepting):
        while (a.paths.state(b.key).handshake or 0) < 0.05:  # the engine takes handshakes of a peer each 20 ms only
            await exchange(a, b, accepting)
        await say(group, b, a.key, GoIdle())
        await a.until(lambda: a.paths.state(b.key).idle)
        assert a.kind(b) == "none"
        await exchange(a, b, accepting)
        assert not a.paths.state(b.key).idle


async def test_a_peer_with_open_connections_does_not_go_idle() -> None:
    async with servers() as group, couple(group, lazy=True) as (a, b, _):
        a.in_use.add(b.key)
        await say(group, b, a.key, GoIdle())
        await a.until(lambda: a.paths.counters["idle_while_in_use"] == 1)
        assert a.kind(b) == "relay"


async def test_stock_wireguard_peers_stay_where_they_are() -> None:
    async with servers() as group, resident("100.64.0.1") as a, loopback_node("100.64.0.9") as stock:
        a.paths.configure(group.configuration())
        accepting = Accepting()
        a.node.listen(PORT, accepting)
        a.node.set_members([Member(stock.public_key, stock.addresses)], {})
        a.paths.set_peers([RemotePeer(stock.public_key)])
        introduce(stock, a.node)
        transport, _ = await stock.dial(Recorder, a.address, PORT, timeout=15)
        transport.write(b"from a phone")
        assert await (await accepting.next()).has(12) == b"from a phone"
        state = a.paths.state(stock.public_key)
        assert state.kind == "udp"
        assert state.endpoint == Endpoint("127.0.0.1", stock.driver.local_port)


async def test_in_a_large_network_lazy_peers_begin_asleep() -> None:
    async with servers() as group, resident("100.64.0.1") as a, resident("100.64.0.2") as b:
        accepting = Accepting()
        b.node.listen(PORT, accepting)
        for home in (a, b):
            home.paths.configure(group.configuration())
        acquaint(a, b, lazy=True)
        others = [RemotePeer(secrets.token_bytes(32), "0.60.0", lazy=True) for _ in range(EAGER_PEERS)]
        old = RemotePeer(secrets.token_bytes(32), "0.44.0", lazy=True)
        members = [Member(peer.key, (f"100.64.1.{number}",)) for number, peer in enumerate([*others, old])]
        a.node.set_members([Member(b.key, (b.address,)), *members], {})
        a.paths.set_peers([])
        a.paths.set_peers([RemotePeer(b.key, "0.60.0", lazy=True), *others, old])
        assert [a.paths.state(peer.key).idle for peer in (*others, old)] == [True] * EAGER_PEERS + [False]
        assert a.paths.state(b.key).idle
        await exchange(a, b, accepting)
        assert not a.paths.state(b.key).idle
        # Both look; then a quarter of an hour passes, with an open connection and without.
        now = asyncio.get_running_loop().time()
        a.in_use.add(b.key)
        for seconds in (0, 1000):
            a.paths.look_for_quiet(now + seconds)
        assert not a.paths.state(b.key).idle
        a.in_use.clear()
        a.paths.look_for_quiet(now + 1060)
        assert not a.paths.state(b.key).idle, "a quarter of an hour since its last use has not passed"
        a.paths.look_for_quiet(now + 2000)
        assert a.paths.state(b.key).idle
        await b.until(lambda: b.paths.state(a.key).idle)
        await exchange(a, b, accepting)


@pytest.mark.parametrize(
    ("version", "sleeps"),
    [("0.44.9", False), ("0.45.0", True), ("v0.60.1", True), ("1.0.0", True), ("development", True), ("", False)],
)
def test_only_agents_that_can_be_woken_may_sleep(version: str, sleeps: bool) -> None:
    assert RemotePeer(b"", version, lazy=True).may_sleep is sleeps
    assert not RemotePeer(b"", version, lazy=False).may_sleep


@pytest.mark.parametrize("host", ["::1", ""])
async def test_direct_paths_lead_over_sockets_of_both_families(host: str) -> None:
    if host:
        require_ipv6()
    async with (
        servers() as group,
        resident("100.64.0.1", ice=True, host=host) as a,
        resident("100.64.0.2", ice=True, host=host) as b,
    ):
        accepting = Accepting()
        b.node.listen(PORT, accepting)
        for home in (a, b):
            home.paths.configure(group.configuration())
        acquaint(a, b)
        await a.until(lambda: a.kind(b) == "ice")
        await exchange(a, b, accepting)
        state = a.paths.state(b.key)
        assert state.endpoint is not None
        assert state.endpoint.port == b.node.driver.local_port
        assert not host or state.endpoint.host == host


async def test_addresses_of_the_overlay_are_no_candidates() -> None:
    async with servers() as group, resident("100.64.0.1", ice=True) as a, resident("100.64.0.2", ice=True) as b:
        accepting = Accepting()
        b.node.listen(PORT, accepting)
        for home in (a, b):
            home.paths.overlay_networks = [ip_network("127.0.0.0/8")]
            home.paths.configure(group.configuration())
        acquaint(a, b)
        await exchange(a, b, accepting)
        await exchange(a, b, accepting)
        assert a.kind(b) == b.kind(a) == "relay"
