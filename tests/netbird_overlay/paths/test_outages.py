"""Whole tunnels in virtual time: an hour without UDP, restarts, and times without any path."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.engine import Engine, Handshake
from netbird_overlay.simulation import ANYONE
from tests.netbird_overlay.nat import World
from tests.netbird_overlay.paths.test_tunnels import is_direct, is_relayed
from tests.netbird_overlay.paths.tunnels import RELAY, Tunnel, connection


class Machine(Tunnel):
    """A tunnel on the internet itself, with keepalives and a key that a later machine may have again."""

    def __init__(self, world: World, number: int, private_key: bytes) -> None:
        super().__init__(world, world.internet, Endpoint(f"203.0.113.{number}", 51820), f"100.64.0.{number}")
        self.number, self.private_key, self.relay_up = number, private_key, True
        self.engine = Engine(private_key, seed=world.random.randbytes(16))
        self.engine.advance(world.now)
        self.engine.set_addresses([self.address])
        self.engine.set_inbound(ANYONE)

    def meet(self, other: Tunnel, stuns: Sequence[Endpoint] = ()) -> None:
        super().meet(other, stuns)
        self.engine.set_peer(other.engine.public_key, [other.address], keepalive=25)

    def lose_relay(self) -> None:
        """The relay ends, until `relay_up` is set again."""
        self.relay_up = False
        self._link_does(lambda link: link.relay_lost(RELAY, self.world.now))

    def _relay_ready(self) -> None:
        if self.relay_up:
            super()._relay_ready()

    def carry(self, datagram: bytes) -> None:
        if self.relay_up:
            super().carry(datagram)


def direct(*, seed: int = 0) -> tuple[World, Machine, Machine]:
    """Two machines that reached each other directly."""
    world = World(seed=seed)
    one, other = (Machine(world, number, world.random.randbytes(32)) for number in (1, 2))
    one.meet(other)
    other.meet(one)
    assert world.run(20, lambda: is_direct(one) and is_direct(other))
    return world, one, other


def test_a_loss_of_udp_of_an_hour_is_mended_within_an_hour() -> None:
    world, one, other = direct()
    world.cut = lambda crossing: True
    world.run(3600)
    assert is_relayed(one)
    assert is_relayed(other)
    world.cut = None
    assert world.run(3960, lambda: is_direct(one) and is_direct(other))


@pytest.mark.parametrize("controller", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_restarted_node_is_reached_again_within_two_seconds(seed: int, controller: bool) -> None:
    world, one, other = direct(seed=seed)
    world.run(300)
    assert one.link is not None
    gone, stayed = (one, other) if one.link.controller == controller else (other, one)
    again = Machine(world, gone.number, gone.private_key)
    stayed.other = again
    again.meet(stayed)
    assert world.run(2, lambda: bool(again.of(Handshake))), "the restarted node has a session"
    connection(again, stayed)
    connection(stayed, again)
    assert world.run(30, lambda: is_direct(again) and is_direct(stayed))


def test_a_lost_relay_leaves_a_direct_path_alone_and_returns_as_standby() -> None:
    world, one, other = direct()
    for tunnel in (one, other):
        tunnel.lose_relay()
    world.run(100)
    assert is_direct(one)
    assert is_direct(other)
    one.relay_up = other.relay_up = True
    assert one.link is not None
    assert other.link is not None
    links = (one.link, other.link)
    assert world.run(50, lambda: all(link.relay_online for link in links))


def test_a_connection_survives_when_relay_and_udp_are_away_for_a_while() -> None:
    world, one, other = direct()
    conn, accepted = connection(one, other)
    world.cut = lambda crossing: True
    for tunnel in (one, other):
        tunnel.lose_relay()
    other.write(accepted, b"while nothing passes")
    world.run(20)
    assert one.paths[-1][1] is None
    assert other.paths[-1][1] is None
    world.cut = None
    one.relay_up = other.relay_up = True
    assert world.run(60, lambda: one.received.get(conn) == b"while nothing passes")
