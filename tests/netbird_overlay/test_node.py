"""A node dials members, networks behind them and names, and takes nobody for a member by a route."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any

import pytest

from netbird_overlay.engine import Endpoint
from netbird_overlay.errors import Refused, TimedOut, Unreachable
from netbird_overlay.members import Member
from netbird_overlay.node import KEEPALIVE, PEERS_A_TURN, Node
from netbird_overlay.testing import LOOPBACK, Accepting, Recorder, allow_everything_in, introduce, loopback_node

pytestmark = pytest.mark.timeout(30)

US, ROUTER, BEHIND = "100.64.0.1", "100.64.0.9", "10.50.0.7"


async def dial(node: Node, host: str, *, port: int = 80, timeout: float = 10) -> Recorder:
    _, protocol = await node.dial(Recorder, host, port, timeout=timeout)
    assert isinstance(protocol, Recorder)
    return protocol


def know(node: Node, router: Node, *addresses: str) -> None:
    """Make the router a member at these addresses, with its endpoint, and let it admit the node."""
    node.set_members(
        [Member(router.public_key, addresses, "router")],
        {router.public_key: Endpoint(LOOPBACK, router.driver.local_port)},
    )
    introduce(router, node, where=False)
    allow_everything_in(router)


async def test_a_network_behind_a_member_is_reached() -> None:
    """An address in a route's prefix is dialed through the peer that carries it, and ends with the route."""
    async with loopback_node(US) as node, loopback_node(BEHIND, ROUTER) as router:
        know(node, router, ROUTER)
        accepting = Accepting()
        router.driver.listen(80, accepting)
        with pytest.raises(Unreachable, match="no peer"):
            await dial(node, BEHIND)
        node.set_routes({"10.50.0.0/24": router.public_key})
        recorder = await dial(node, BEHIND)
        await accepting.next()
        assert node.carrier("10.50.0.99") == router.public_key
        node.set_routes({})
        assert isinstance(await recorder.lost, ConnectionAbortedError)
        assert node.carrier("10.50.0.99") is None


async def test_a_route_over_an_unknown_peer_waits_for_it() -> None:
    """A route may be set before its peer is a member; it takes effect with the peer, and the longest prefix wins."""
    async with loopback_node(US) as node, loopback_node(BEHIND, ROUTER) as router:
        router.driver.listen(80, Recorder)
        node.set_routes({"10.0.0.0/8": secrets.token_bytes(32), "10.50.0.0/24": router.public_key})
        with pytest.raises(Unreachable, match="no peer"):
            await dial(node, BEHIND)
        know(node, router, ROUTER)
        await dial(node, BEHIND)


@pytest.mark.parametrize("bad", ["10.0.0.1/8", "ten", "10.0.0.0/33"])
async def test_a_bad_route_changes_nothing(bad: str) -> None:
    """A prefix that is invalid refuses all routes of the call, and those in force stay."""
    async with loopback_node(US) as node:
        key = secrets.token_bytes(32)
        node.set_routes({"10.0.0.0/8": key})
        with pytest.raises(ValueError, match=re.escape(bad.partition("/")[0])):
            node.set_routes({"192.168.0.0/16": key, bad: key})
        assert node.carrier("10.1.1.1") == key
        assert node.carrier("192.168.1.1") is None


@pytest.mark.parametrize("prefix", ["10.50.0.0/24", "10.50.0.7/32"])
async def test_promise_1_a_host_behind_a_router_is_not_the_router(prefix: str) -> None:
    """A connection from a routed network is reset, though its packets come by the router's key, and has no `whois`."""
    async with loopback_node(US) as node, loopback_node(BEHIND) as router:
        know(node, router, ROUTER)
        node.set_routes({prefix: router.public_key})
        allow_everything_in(node)
        accepting = Accepting()
        node.listen(80, accepting)
        router.set_members([], {})
        introduce(router, node)
        assert node.whois(BEHIND) is None
        assert isinstance(await (await dial(router, US)).lost, ConnectionResetError)
        assert accepting.count == 0


async def test_promise_1_datagrams_of_a_host_behind_a_router_are_not_the_router_s() -> None:
    """Datagrams from a routed network are dropped, and the routing peer's own are delivered."""
    received: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()

    class Receiver(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            received.put_nowait((data, addr[0]))

    for address, arrives in ((BEHIND, False), (ROUTER, True)):
        async with loopback_node(US) as node, loopback_node(address) as router:
            know(node, router, ROUTER)
            node.set_routes({"10.50.0.0/24": router.public_key})
            node.driver.engine.set_inbound([("0.0.0.0/0", 17, 0, 65535), ("0.0.0.0/0", 6, 0, 65535)])
            node.listen_datagrams(53, Receiver)
            node.driver.listen(80, Recorder)
            router.set_members([], {})
            introduce(router, node)
            await dial(router, US)
            transport, _ = await router.datagrams(asyncio.DatagramProtocol, US, 53, timeout=5)
            transport.sendto(b"query")
            await dial(router, US)  # what was sent before has arrived
            assert received.qsize() == int(arrives)


async def test_a_route_takes_no_member_address() -> None:
    """A route to exactly a member's address is withheld while the member has it, in whichever order they come."""
    async with loopback_node(US) as node:
        router, alice = secrets.token_bytes(32), secrets.token_bytes(32)
        members = [Member(router, (ROUTER,)), Member(alice, ("100.64.0.5",), "alice")]
        for first in (True, False):
            if first:
                node.set_members(members, {})
            node.set_routes({"100.64.0.5/32": router})
            node.set_members(members, {})
            owner = node.whois("100.64.0.5")
            assert owner is not None
            assert owner.name == "alice"
            node.set_members(members[:1], {})
            assert node.whois("100.64.0.5") is None
            state = node.driver.engine.peer(router)
            assert state is not None
            assert set(state.allowed_ips) == {f"{ROUTER}/32", "100.64.0.5/32"}
            node.set_routes({})
            node.set_members([], {})


async def test_a_peer_is_kept_alive_once_it_has_shaken_hands() -> None:
    """A peer gets our keepalive with its first handshake, so that one that never came costs nothing."""
    async with loopback_node(US) as node, loopback_node(ROUTER) as router:
        know(node, router, ROUTER)
        key = router.public_key
        state = node.driver.engine.peer(key)
        assert state is not None
        assert not state.keepalive
        router.driver.listen(80, Recorder)
        await dial(node, ROUTER)
        state = node.driver.engine.peer(key)
        assert state is not None
        assert state.keepalive == KEEPALIVE


async def test_both_ends_need_the_preshared_key() -> None:
    """With a preshared key at both ends they connect; with one at one end only, there is no handshake."""
    secret = secrets.token_bytes(32)
    async with (
        loopback_node(US, preshared_key=secret) as node,
        loopback_node(ROUTER, preshared_key=secret) as router,
        loopback_node("100.64.0.8") as other,
    ):
        know(node, router, ROUTER)
        router.driver.listen(80, Recorder)
        await dial(node, ROUTER)
        know(node, other, "100.64.0.8")
        with pytest.raises(Unreachable, match="does not answer"):
            await dial(node, "100.64.0.8", timeout=0.5)


async def test_what_is_taken_away_can_go_first() -> None:
    """Peers and addresses that a map no longer has go at once, and nothing is added, so that rules can come between."""
    async with loopback_node(US) as node:
        alice, bob, carol = (secrets.token_bytes(32) for _ in range(3))
        node.set_members([Member(alice, ("100.64.0.5", "100.64.0.6")), Member(bob, ("100.64.0.7",))], {})
        after = [Member(alice, ("100.64.0.5",)), Member(carol, ("100.64.0.6", "100.64.0.7"))]
        node.retire(after)
        assert set(node.members) == {alice}
        assert node.whois("100.64.0.5") is not None
        assert node.whois("100.64.0.6") is None
        assert node.whois("100.64.0.7") is None
        await node.replace_members(after, {})
        owner = node.whois("100.64.0.6")
        assert owner is not None
        assert owner.key == carol


async def test_promise_10_a_large_map_leaves_the_loop_to_others() -> None:
    """Peers are added a limited number at a time, and other work of the loop runs in between."""
    members = [Member(sha256(b"%d" % n).digest(), (f"100.65.{n // 250}.{1 + n % 250}",)) for n in range(1000)]
    async with loopback_node(US) as node:
        sizes: list[int] = []

        async def watch() -> None:
            while len(node.members) < len(members):
                sizes.append(len(node.members))
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            await asyncio.sleep(0)
            await node.replace_members(members, {})
        assert len(sizes) >= len(members) // PEERS_A_TURN
        assert all(later - earlier <= PEERS_A_TURN for earlier, later in pairwise(sizes))


# Names and paths ----------------------------------------------------------------------------------------------------


async def test_a_name_is_dialed_by_its_addresses() -> None:
    """The addresses of a name are tried in order; the last one's error counts if none answers."""
    async with loopback_node(US) as node, loopback_node(ROUTER) as router:
        know(node, router, ROUTER)
        answers: dict[str, Sequence[str]] = {"router.overlay": ["10.9.9.9", ROUTER], "empty.overlay": []}

        async def resolve(name: str) -> Sequence[str]:
            return answers[name]

        with pytest.raises(Unreachable, match="name"):
            await dial(node, "router.overlay")
        node.resolve = resolve
        router.driver.listen(80, Recorder)
        await dial(node, "router.overlay")
        with pytest.raises(Refused):
            await dial(node, "router.overlay", port=81)
        with pytest.raises(Unreachable, match="no address"):
            await dial(node, "empty.overlay")


async def test_a_name_that_hangs_ends_with_the_dial() -> None:
    """A resolver that does not answer ends the dial at its own deadline."""
    async with loopback_node(US) as node:

        async def resolve(name: str) -> Sequence[str]:
            await asyncio.Event().wait()
            return []

        node.resolve = resolve
        with pytest.raises(TimedOut, match="resolved"):
            await dial(node, "slow.overlay", timeout=0.05)


async def test_a_dial_wakes_the_path_to_its_peer() -> None:
    """Where paths are made on demand, a dial to a peer without endpoint asks for a path and waits for the handshake."""
    async with loopback_node(US) as node, loopback_node(ROUTER) as router:
        introduce(node, router, where=False)
        introduce(router, node, where=False)
        allow_everything_in(router)
        router.driver.listen(80, Recorder)
        woken: list[bytes] = []

        def wake(key: bytes) -> bool:
            woken.append(key)
            # The path that is found: the router learns our endpoint and shakes hands.
            router.driver.engine.set_peer(
                node.public_key, node.addresses, endpoint=Endpoint(LOOPBACK, node.driver.local_port)
            )
            router.driver.engine.handshake(node.public_key)
            router.driver.touch()
            return True

        node.wake = wake
        await dial(node, ROUTER)
        assert woken == [router.public_key]
        node.wake = lambda key: True
        node.set_members([Member(secrets.token_bytes(32), ("100.64.0.77",))], {})
        with pytest.raises(Unreachable, match="no path"):
            await dial(node, "100.64.0.77", timeout=0.05)
        node.wake = lambda key: False
        with pytest.raises(Unreachable, match="has not connected yet"):
            await dial(node, "100.64.0.77", timeout=15)


async def test_datagrams_reach_an_address_and_a_name() -> None:
    """The first address of a name with a peer in reach is used; without one, the dial's errors apply."""
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data.upper(), addr)

    class Client(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            answers.put_nowait(data)

    async def resolve(name: str) -> list[str]:
        return ["100.64.0.9", "100.64.0.2"]

    async with loopback_node("100.64.0.1") as ours, loopback_node("100.64.0.2") as theirs:
        introduce(ours, theirs)
        introduce(theirs, ours)
        theirs.driver.engine.set_inbound([("0.0.0.0/0", 17, 0, 65535)])
        theirs.driver.datagram_endpoint(Server, port=53)
        ours.resolve = resolve
        for host in ("100.64.0.2", "wiki.example"):
            transport, _ = await ours.datagrams(Client, host, 53, timeout=10)
            transport.sendto(host.encode())
            assert await asyncio.wait_for(answers.get(), 10) == host.upper().encode()
            transport.close()
        with pytest.raises(Unreachable, match="no peer has this address"):
            await ours.datagrams(Client, "100.64.0.9", 53, timeout=10)
