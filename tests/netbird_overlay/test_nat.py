"""Two agents behind each pair of NATs: a direct path where there can be one, a clean failure where there cannot."""

from __future__ import annotations

import os
from itertools import combinations_with_replacement, product
from random import Random

import pytest

from netbird_overlay.endpoints import Endpoint
from tests.netbird_overlay.ice_machines import Failed, Lost, Machine, Selected, StunServer, decided
from tests.netbird_overlay.nat import Behavior, NatTable, World

A_NAT, B_NAT = "203.0.113.1", "203.0.113.2"
A, B = Endpoint("10.1.0.2", 51820), Endpoint("10.2.0.2", 51820)
NATS: tuple[Behavior | None, ...] = (None, *Behavior)
PAIRS = list(combinations_with_replacement(NATS, 2))
SEEDS = int(os.environ.get("NAT_SEEDS", "20"))


def can_be_direct(a: Behavior | None, b: Behavior | None) -> bool:
    """Return False where a symmetric NAT meets one that insists on the port: neither can learn the other's."""
    hard = {Behavior.SYMMETRIC, Behavior.PORT_RESTRICTED}
    return not (Behavior.SYMMETRIC in (a, b) and {a, b} <= hard)


def network(
    a: Behavior | None, b: Behavior | None, *, seed: int = 0, lifetime: float = 60.0, **weather: float
) -> tuple[World, Machine, Machine]:
    """Return two machines behind NATs, the first one controlling, with a STUN server outside."""
    world = World(seed=seed, **weather)
    servers = (StunServer(world, "198.51.100.1").endpoint, StunServer(world, "198.51.100.2").endpoint)
    machines = []
    for behavior, address, inside, controlling in ((a, A_NAT, A, True), (b, B_NAT, B, False)):
        endpoint = inside if behavior else Endpoint(address, 51820)
        site = world.site(behavior, address, lifetime=lifetime)
        machines.append(Machine(world, site, endpoint, controlling=controlling, servers=servers))
    return world, machines[0], machines[1]


def meet(world: World, a: Machine, b: Machine) -> bool:
    """Run a session to its decision; True if both sides selected a pair."""
    a.start(b)
    b.start(a)
    assert world.run(13, lambda: decided(a, b))
    outcomes = {type(a.outcome()), type(b.outcome())}
    assert len(outcomes) == 1, f"the sides disagree: {a.log}, {b.log}"
    return outcomes == {Selected}


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=str)
def test_direct_where_it_can_be(a: Behavior | None, b: Behavior | None) -> None:
    for turned, seed in product((False, True), range(SEEDS)):
        world, one, other = network(*((b, a) if turned else (a, b)), seed=seed, jitter=0.05)
        assert meet(world, one, other) is can_be_direct(a, b), f"seed {seed}, turned {turned}"


@pytest.mark.parametrize(("a", "b"), [pair for pair in PAIRS if can_be_direct(*pair)], ids=str)
def test_direct_through_loss(a: Behavior | None, b: Behavior | None) -> None:
    for seed in range(SEEDS):
        world, one, other = network(a, b, seed=seed, loss=0.1, jitter=0.2)
        assert meet(world, one, other), f"seed {seed}"


@pytest.mark.parametrize(("a", "b"), [pair for pair in PAIRS if can_be_direct(*pair)], ids=str)
def test_keepalives_keep_the_mappings(a: Behavior | None, b: Behavior | None) -> None:
    world, one, other = network(a, b, lifetime=5.0)
    assert meet(world, one, other)
    world.run(300)
    assert (len(one.log), len(other.log)) == (1, 1)


@pytest.mark.parametrize("behavior", Behavior)
def test_nat_that_restarts_ends_the_path_and_a_new_session_finds_another(behavior: Behavior) -> None:
    world, one, other = network(behavior, None)
    assert meet(world, one, other)
    world.run(5)
    for site in world.sites:
        if site.nat is not None:
            site.nat.forget()
    world.run(20)
    # The machine behind the NAT still gets answers, through a new mapping; the other one notices.
    assert isinstance(other.outcome(), Lost)
    for machine in (one, other):
        machine.log.clear()
    assert meet(world, one, other)


def test_neighbors_behind_one_nat_use_their_own_network() -> None:
    world = World()
    server = StunServer(world, "198.51.100.1").endpoint
    site = world.site(Behavior.SYMMETRIC, A_NAT)
    a = Machine(world, site, Endpoint("10.1.0.2", 51820), controlling=True, servers=(server,))
    b = Machine(world, site, Endpoint("10.1.0.3", 51820), controlling=False, servers=(server,))
    assert meet(world, a, b)
    assert a.outcome() == Selected(b.endpoint, "host", "host")


def test_without_stun_one_open_side_is_enough() -> None:
    world, one, other = network(None, Behavior.SYMMETRIC)
    one.servers = other.servers = ()
    assert meet(world, one, other)
    assert isinstance(one.outcome(), Selected)


def test_failure_comes_at_twelve_seconds() -> None:
    world, one, other = network(Behavior.SYMMETRIC, Behavior.SYMMETRIC)
    assert not meet(world, one, other)
    assert [(round(at, 3), event) for at, event in one.log + other.log] == [(1012.0, Failed())] * 2


# The table -------------------------------------------------------------------------------------------------------

INSIDE = Endpoint("10.1.0.2", 51820)
PEER, SAME_HOST, STRANGER = Endpoint("192.0.2.1", 1), Endpoint("192.0.2.1", 2), Endpoint("192.0.2.9", 1)


@pytest.mark.parametrize(
    ("behavior", "admitted"),
    [
        (Behavior.FULL_CONE, {PEER, SAME_HOST, STRANGER}),
        (Behavior.ADDRESS_RESTRICTED, {PEER, SAME_HOST}),
        (Behavior.PORT_RESTRICTED, {PEER}),
        (Behavior.SYMMETRIC, {PEER}),
    ],
)
def test_each_behavior_admits_its_own(behavior: Behavior, admitted: set[Endpoint]) -> None:
    table = NatTable(behavior, A_NAT, Random(1))
    port = table.outgoing(INSIDE, PEER, 0).port
    entering = {source for source in (PEER, SAME_HOST, STRANGER) if table.incoming(source, port, 1) == INSIDE}
    assert entering == admitted
    assert all(table.incoming(source, port, 61) is None for source in (PEER, SAME_HOST, STRANGER))


@pytest.mark.parametrize("behavior", Behavior)
def test_only_a_symmetric_nat_maps_by_destination(behavior: Behavior) -> None:
    table = NatTable(behavior, A_NAT, Random(1))
    outside = {table.outgoing(INSIDE, destination, 0) for destination in (PEER, SAME_HOST, STRANGER)}
    assert len(outside) == (3 if behavior is Behavior.SYMMETRIC else 1)
