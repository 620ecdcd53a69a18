"""Routes of a map: groups of routing peers, the choice among them, and what is not used."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from netbird_overlay.membership.applied_map import AppliedMap
from netbird_overlay.membership.peer_routes import (
    MAX_GROUPS,
    Carriers,
    Condition,
    RouteGroup,
    RoutingPeer,
    choose,
    read_routes,
)
from netbird_overlay.network_map import OwnNode
from netbird_overlay.testing import loopback_node
from netbird_wire.envelope import format_key
from netbird_wire.management_pb2 import NetworkMap, RemotePeerConfig, Route

OURS, A, B, C = (bytes([number]) * 32 for number in (1, 2, 3, 4))
CONNECTED, AWAY = Condition(connected=True), Condition()


def route(peer: bytes = A, network: str = "10.0.0.0/8", name: str = "office", **more: object) -> Route:
    return Route(Peer=format_key(peer), Network=network, NetID=name, **more)  # type: ignore[arg-type]


def choice(conditions: Mapping[bytes, Condition], current: bytes | None = None, **metrics: int) -> bytes | None:
    peers = tuple(RoutingPeer(key, metrics.get(name, 100)) for key, name in ((A, "a"), (B, "b"), (C, "c")))
    group = RouteGroup("office", "10.0.0.0/8", peers=tuple(peer for peer in peers if peer.key in conditions))
    return choose(group, conditions.__getitem__, current)


def test_routes_of_one_network_are_a_group() -> None:
    """Peers of one network and name carry the same traffic; another name or network is another group."""
    routes = read_routes(
        [
            route(A, Metric=200),
            route(B, Metric=100),
            route(B, "10.1.0.7/16"),
            route(A, name="branch"),
            route(C, "192.0.2.0/24", Domains=["Example.COM.", "*.corp.example", ""], keepRoute=True),
        ],
        OURS,
    )
    assert routes.groups == (
        RouteGroup("office", "10.0.0.0/8", peers=(RoutingPeer(B, 100), RoutingPeer(A, 200))),
        RouteGroup("office", "10.1.0.0/16", peers=(RoutingPeer(B, 0),)),
        RouteGroup("branch", "10.0.0.0/8", peers=(RoutingPeer(A, 0),)),
        RouteGroup("office", domains=("*.corp.example", "example.com"), keep=True, peers=(RoutingPeer(C, 0),)),
    )
    assert routes.skipped == 0


def test_exit_nodes_are_named_and_not_used() -> None:
    """Routes for all traffic are left out, and their names are reported."""
    routes = read_routes([route(network="0.0.0.0/0", name="exit"), route(network="::/0", name="exit6")], OURS)
    assert routes.groups == ()
    assert routes.exits == ("exit", "exit6")


def test_our_own_groups_are_left_out() -> None:
    """A network that we ourselves route is not reached through another peer."""
    assert read_routes([route(A), route(OURS)], OURS).groups == ()


def test_unreadable_routes_are_skipped() -> None:
    """A route with a bad key, prefix or list of domains is left out and counted; the others count."""
    routes = read_routes(
        [Route(Peer="junk", Network="10.0.0.0/8"), route(network="ten"), route(Domains=["*", "."]), route(B)], OURS
    )
    assert [group.peers for group in routes.groups] == [(RoutingPeer(B, 0),)]
    assert routes.skipped == 3


def test_groups_are_limited() -> None:
    """Groups above the limit are left out and counted; peers of a group within it still count."""
    flood = [route(A, f"10.{n >> 8 & 255}.{n & 255}.0/24", name=str(n >> 16)) for n in range(MAX_GROUPS + 5)]
    routes = read_routes([*flood, route(B, "10.0.0.0/24", name="0")], OURS)
    assert len(routes.groups) == MAX_GROUPS
    assert routes.skipped == 5
    assert len(routes.groups[0].peers) == 2


def test_the_best_connected_peer_carries() -> None:
    """Connection goes before metric, metric before a direct path, a direct path before latency."""
    assert choice({A: AWAY, B: CONNECTED}, a=1, b=9000) == B
    assert choice({A: CONNECTED, B: CONNECTED}, a=200, b=100) == B
    assert choice({A: Condition(connected=True, relayed=True), B: CONNECTED}) == B
    assert choice({A: Condition(connected=True, relayed=True), B: CONNECTED}, a=99) == A
    fast, slow = Condition(connected=True, latency=0.01), Condition(connected=True, latency=0.2)
    assert choice({A: slow, B: fast}) == B
    assert choice({A: CONNECTED, B: slow}) == B


def test_a_sleeping_peer_carries_before_one_that_is_away() -> None:
    """A peer that sleeps until it is needed is chosen before one without a connection, and after a connected one."""
    idle = Condition(idle=True)
    assert choice({A: AWAY, B: idle}, a=1) == B
    assert choice({A: CONNECTED, B: idle}, b=1) == A


def test_a_dial_waits_for_the_best_of_those_that_are_away() -> None:
    """If no peer of the group is connected, the best by metric is chosen, so that a dial waits for its path."""
    assert choice({A: AWAY, B: AWAY}, a=200, b=100) == B
    assert choice({}) is None


def test_equals_do_not_alternate() -> None:
    """The present carrier stays until another is better by more than a trifle, or it is no longer connected."""
    near = Condition(connected=True, latency=0.100), Condition(connected=True, latency=0.095)
    assert choice({A: near[0], B: near[1]}, A) == A
    assert choice({A: near[0], B: Condition(connected=True, latency=0.05)}, A) == B
    assert choice({A: AWAY, B: CONNECTED}, A) == B


def test_prefixes_follow_the_chosen_peers() -> None:
    """Each prefix and each learned address leads to its group's carrier; of two groups the first by name counts."""
    carriers = Carriers()
    carriers.replace(
        read_routes([route(A), route(B, name="branch"), route(C, "", name="names", Domains=["a.example"])], OURS).groups
    )
    carriers.choose(lambda key: CONNECTED)
    names = ("names", "", ("a.example",))
    assert carriers.prefixes({names: ["192.0.2.7", "fd00::7"]}) == {
        "10.0.0.0/8": B,
        "192.0.2.7/32": C,
        "fd00::7/128": C,
    }
    assert carriers.concern(A)
    carriers.replace(read_routes([route(A)], OURS).groups)
    carriers.choose(lambda key: CONNECTED)
    assert carriers.prefixes({}) == {"10.0.0.0/8": A}
    assert not carriers.concern(B)


async def test_promise_10_routing_peers_that_come_and_go_share_a_choice() -> None:
    """However often routing peers come and go, carriers are chosen once in the interval, with one report of it."""

    class Counting(set[bytes]):
        looks = 0

        def __contains__(self, key: object) -> bool:
            self.looks += 1
            return super().__contains__(key)

    connected = Counting()
    rerouted = asyncio.Event()
    async with loopback_node("100.64.0.1") as node:
        applied = AppliedMap(node, None, inbound=True, endpoints={}, connected=connected, rerouted=rerouted.set)
        peers = [
            RemotePeerConfig(wgPubKey=format_key(key), allowedIps=[f"100.64.0.{n}/32"]) for n, key in ((5, A), (6, B))
        ]
        network_map = NetworkMap(remotePeers=peers, Routes=[route(A, Metric=1), route(B, Metric=2)])
        await applied.apply(network_map, OwnNode(("100.64.0.1",), 1280))
        assert node.carrier("10.1.1.1") == A
        before = connected.looks
        for _ in range(1000):
            connected.add(B)
            applied.peer_changed(B)
        assert connected.looks == before
        await rerouted.wait()
        assert node.carrier("10.1.1.1") == B
        assert connected.looks == before + 2
        applied.peer_changed(B)
        applied.close()
