"""A download goes on when datagrams stop: by relay within 8 seconds, and directly again when they pass."""

from __future__ import annotations

import os
from itertools import combinations_with_replacement
from random import Random

import pytest

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.paths.effects import RelayPath
from tests.netbird_overlay.ice_machines import StunServer
from tests.netbird_overlay.nat import Behavior, World
from tests.netbird_overlay.paths.tunnels import RELAY, Tunnel, connection
from tests.netbird_overlay.test_nat import can_be_direct

NATS: tuple[Behavior | None, ...] = (None, *Behavior)
PAIRS = list(combinations_with_replacement(NATS, 2))
DIRECT = [pair for pair in PAIRS if can_be_direct(*pair)]
RELAYED_WITHIN = 8.0
SEEDS = int(os.environ.get("NAT_SEEDS", "2"))


def network(a: Behavior | None, b: Behavior | None, *, seed: int = 0, **weather: float) -> tuple[World, Tunnel, Tunnel]:
    """Return two machines that are each other's peers, behind NATs."""
    world = World(seed=seed, **weather)
    servers = (StunServer(world, "198.51.100.1").endpoint,)
    tunnels = []
    for number, behavior in ((1, a), (2, b)):
        public = f"203.0.113.{number}"
        endpoint = Endpoint(f"10.{number}.0.2" if behavior else public, 51820)
        tunnels.append(Tunnel(world, world.site(behavior, public), endpoint, f"100.64.0.{number}"))
    one, other = tunnels
    one.meet(other, servers)
    other.meet(one, servers)
    return world, one, other


def is_direct(tunnel: Tunnel) -> bool:
    return bool(tunnel.paths) and isinstance(tunnel.paths[-1][1], Endpoint)


def is_relayed(tunnel: Tunnel) -> bool:
    return bool(tunnel.paths) and tunnel.paths[-1][1] == RelayPath(RELAY)


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize(("a", "b"), PAIRS, ids=str)
def test_relay_comes_first_and_the_direct_path_where_there_is_one(
    a: Behavior | None, b: Behavior | None, seed: int
) -> None:
    world, one, other = network(a, b, seed=seed, jitter=0.02)
    assert world.run(2, lambda: all(is_relayed(each) or is_direct(each) for each in (one, other)))
    world.run(15)
    assert (is_direct(one), is_direct(other)) == (can_be_direct(a, b),) * 2, (one.paths, other.paths)
    conn, accepted = connection(one, other)
    one.write(conn, b"ping")
    assert world.run(2, lambda: other.received.get(accepted) == b"ping")


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize(("a", "b"), DIRECT, ids=str)
@pytest.mark.parametrize("loss", [0.0, 0.03])
def test_download_goes_on_by_relay_and_directly_again(
    a: Behavior | None, b: Behavior | None, seed: int, loss: float
) -> None:
    world, one, other = network(a, b, seed=seed, jitter=0.005, loss=loss)
    assert world.run(20, lambda: is_direct(one) and is_direct(other))
    conn, accepted = connection(one, other)
    data = world.random.randbytes(1_000_000)
    other.write(accepted, data)
    assert world.run(20, lambda: len(one.received.get(conn, b"")) > 100_000)

    cut = world.now
    world.cut = lambda crossing: True
    assert world.run(RELAYED_WITHIN, lambda: is_relayed(one) and is_relayed(other))
    assert world.run(cut + RELAYED_WITHIN - world.now, lambda: one.progress[-1][0] > cut + 1)

    world.cut = None
    assert world.run(30, lambda: is_direct(one) and is_direct(other)), (one.paths, other.paths)
    assert world.run(60, lambda: len(one.received[conn]) == len(data))
    assert bytes(one.received[conn]) == data
    assert (one.ended(), other.ended()) == ([], [])


def break_something(world: World, one: Tunnel, other: Tunnel) -> None:
    """Let one part fail that chance picks, for a time that chance picks, and mend it."""
    random = world.random
    tunnel = random.choice((one, other))
    seconds = random.uniform(0.5, 12)
    match random.choice(("udp", "relay", "signal", "nat", "session")):
        case "udp":
            world.cut = lambda crossing: True
            world.run(seconds)
            world.cut = None
        case "relay":
            tunnel.set_relay(up=False)
            world.run(seconds)
            tunnel.set_relay(up=True)
        case "signal":
            tunnel.set_signal(up=False)
            world.run(seconds)
            tunnel.set_signal(up=True)
        case "nat":
            for site in world.sites:
                if site.nat is not None:
                    site.nat.forget()
        case "session":
            tunnel.engine.reset_session(tunnel.engine.peers()[0].public_key)


@pytest.mark.parametrize("seed", range(8 * SEEDS))
@pytest.mark.parametrize("loss", [0.0, 0.03])
def test_connection_outlives_whatever_fails_for_a_while(loss: float, seed: int) -> None:
    """NATs that restart, relay, signal server and datagrams that come and go: all bytes arrive, and a path remains."""
    a, b = Random(seed).choice(PAIRS)
    world, one, other = network(a, b, seed=seed, jitter=0.005, loss=loss)
    assert world.run(20, lambda: bool(one.paths and one.paths[-1][1] and other.paths and other.paths[-1][1]))
    conn, accepted = connection(one, other)
    sent = {one: b"", other: b""}
    for _ in range(8):
        for tunnel, number in ((one, conn), (other, accepted)):
            data = world.random.randbytes(world.random.randrange(1, 60_000))
            sent[tunnel] += data
            tunnel.write(number, data)
        world.run(world.random.uniform(0, 2))
        break_something(world, one, other)
    assert world.run(60, lambda: one.received.get(conn) == sent[other] and other.received.get(accepted) == sent[one]), (
        one.paths,
        other.paths,
    )
    world.run(60)
    assert (one.ended(), other.ended()) == ([], [])
    assert all(is_direct(tunnel) or is_relayed(tunnel) for tunnel in (one, other)), (one.paths, other.paths)
