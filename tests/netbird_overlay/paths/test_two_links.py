"""Two links with each other, under loss, delays, restarts and outages: both end connected, and never oscillate."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbird_overlay.paths.effects import RelayPath
from tests.netbird_overlay.paths.links import KEY_A, KEY_B
from tests.netbird_overlay.paths.world import World

FAULTS = ("restart", "relay down", "relay up", "signal down", "signal up", "direct down", "direct up", "network")
fault = st.tuples(st.sampled_from(FAULTS), st.integers(0, 1), st.floats(0, 60))


def strike(world: World, kind: str, index: int) -> None:
    side = world.sides[index]
    match kind.split():
        case ["restart"]:
            world.restart(side)
        case ["network"]:
            side.link.network_changed(world.now)
        case ["relay", state]:
            world.set_relay(side, up=state == "up")
        case ["signal", state]:
            world.set_signal(side, up=state == "up")
        case ["direct", state]:
            world.set_direct(up=state == "up")


def calm_down(world: World) -> None:
    world.loss = 0.0
    world.set_direct(up=True)
    for side in world.sides:
        world.set_signal(side, up=True)
        world.set_relay(side, up=True)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from((0.0, 0.2, 0.6)),
    jitter=st.sampled_from((0.0, 0.05, 1.5)),
    ice=st.tuples(st.booleans(), st.booleans()),
    faults=st.lists(fault, max_size=12),
)
def test_two_links_end_connected_and_stay_so(
    seed: int, loss: float, jitter: float, ice: tuple[bool, bool], faults: list[tuple[str, int, float]]
) -> None:
    world = World(seed, (KEY_A, KEY_B), ice=ice)
    world.loss, world.jitter = loss, jitter
    world.run(world.random.uniform(0, 20))
    for kind, index, pause in faults:
        strike(world, kind, index)
        world.run(pause)
    calm_down(world)
    world.run(150)
    paths = [side.link.path for side in world.sides]
    assert None not in paths, "a path exists as soon as the guard's longest interval passed"
    assert world.sides[0].session == world.sides[1].session != 0

    world.run(3 * 3600)  # a link with the relay only asks for more once an hour
    if all(ice):
        assert not any(isinstance(side.link.path, RelayPath) for side in world.sides), [
            s.link.path for s in world.sides
        ]
    else:
        assert {side.link.path for side in world.sides} == {RelayPath("rel://home-b")}, "the controller's relay"
    before = [(len(side.changes), side.agents, side.messages) for side in world.sides]
    world.run(3 * 3600)
    assert [(len(side.changes), side.agents, side.messages) for side in world.sides] == before, "it oscillates"
    assert [side.link.status() for side in world.sides] == ["connected"] * 2


@pytest.mark.parametrize("ice", [(True, True), (True, False), (False, True), (False, False)])
def test_two_links_need_a_second_without_loss(ice: tuple[bool, bool]) -> None:
    world = World(1, (KEY_A, KEY_B), ice=ice)
    world.run(1)
    assert None not in [side.link.path for side in world.sides]
    assert world.sides[0].session == world.sides[1].session != 0
