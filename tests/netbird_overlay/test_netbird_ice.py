"""Our agent meets an agent of NetBird's, in both roles, through each pair of NATs, with its quirks."""

from __future__ import annotations

from itertools import product

import pytest

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.agent import Failed, Lost, Selected
from netbird_overlay.ice.candidates import Candidate, format_candidate, parse_candidate
from tests.netbird_overlay.ice_machines import Machine, StunServer
from tests.netbird_overlay.nat import Behavior, World
from tests.netbird_overlay.netbird_ice import NetbirdAgent
from tests.netbird_overlay.test_nat import NATS, can_be_direct


class Pairing:
    """Our machine and theirs, with a signal server that takes 50 ms and drops what the other is not ready for."""

    def __init__(
        self, ours: Behavior | None, theirs: Behavior | None, *, controlling: bool, seed: int = 0, **weather: float
    ) -> None:
        self.world = World(seed=seed, **weather)
        stun = StunServer(self.world, "198.51.100.1").endpoint
        site = self.world.site(ours, "203.0.113.1")
        inside = Endpoint("10.1.0.2" if ours else "203.0.113.1", 51820)
        self.machine = Machine(self.world, site, inside, controlling=controlling, servers=(stun,))
        site = self.world.site(theirs, "203.0.113.2")
        inside = Endpoint("10.2.0.2" if theirs else "203.0.113.2", 51820)
        self.agent = NetbirdAgent(self.world, site, inside, controlling=not controlling, stun=stun)
        self._sent = 0

    def hear(self, candidate: Candidate, delay: float) -> None:
        """Take a candidate from our machine, as the other end of its signal."""
        line = format_candidate(candidate)
        at = self.world.now + delay
        self._lines.append((at, line))
        self._lines.append((at + 1.0, line))  # repeated once

    def start(self, *, late: float = 0.0) -> None:
        """Begin on our side now, on theirs so many seconds later."""
        self._lines: list[tuple[float, str]] = []
        self._starts_at = self.world.now + late
        self.machine.start(self)  # type: ignore[arg-type]

    @property
    def credentials(self) -> object:
        return self.agent.credentials

    def run(self, seconds: float) -> None:
        end = self.world.now + seconds
        while self.world.now < end:
            self.world.run(0.01)
            if self.agent.remote is None and self.world.now >= self._starts_at:
                self.agent.start(self.machine.credentials)
            for at, line in [each for each in self._lines if each[0] <= self.world.now]:
                self._lines.remove((at, line))
                self.agent.add_remote(line)
            for line in self.agent.lines[self._sent :]:
                self.machine.hear(parse_candidate(line), 0.05)
            self._sent = len(self.agent.lines)


@pytest.mark.parametrize("controlling", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), list(product(NATS, NATS)), ids=str)
def test_paths_with_netbirds_agents(ours: Behavior | None, theirs: Behavior | None, controlling: bool) -> None:
    pairing = Pairing(ours, theirs, controlling=controlling, jitter=0.01)
    pairing.start()
    pairing.run(13)
    if can_be_direct(ours, theirs):
        assert isinstance(pairing.machine.outcome(), Selected)
        assert pairing.agent.answer is not None
        assert pairing.agent.answer[0] == "selected"
        pairing.run(60)
        assert len(pairing.machine.log) == 1
        assert pairing.agent.answer[0] == "selected"
    else:
        assert pairing.machine.outcome() == Failed()
        assert pairing.agent.answer == ("failed", None)
    assert pairing.agent.counters["dropped"] == 0


@pytest.mark.parametrize("controlling", [True, False])
@pytest.mark.parametrize("late", [0.5, 1.0, 3.0, 8.0])
@pytest.mark.parametrize(("ours", "theirs"), [(None, None), (Behavior.PORT_RESTRICTED, Behavior.PORT_RESTRICTED)])
def test_agent_of_theirs_that_begins_late_is_met(
    ours: Behavior | None, theirs: Behavior | None, late: float, controlling: bool
) -> None:
    """Our pairs have failed by then, and what we named before it had an agent is lost; its checks revive them."""
    pairing = Pairing(ours, theirs, controlling=controlling)
    pairing.start(late=late)
    pairing.run(late + 0.1)
    pairing.machine.signal(pairing.machine.host)
    for endpoint in pairing.machine.stun.reflexive(pairing.world.now):
        pairing.machine.signal(Candidate("srflx", endpoint, 1694498815))
    pairing.run(12 - late)
    assert isinstance(pairing.machine.outcome(), Selected)
    assert pairing.agent.answer is not None
    assert pairing.agent.answer[0] == "selected"


@pytest.mark.parametrize("controlling", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_paths_through_loss(seed: int, controlling: bool) -> None:
    nat = Behavior.PORT_RESTRICTED
    pairing = Pairing(nat, nat, controlling=controlling, seed=seed, loss=0.1, jitter=0.1)
    pairing.start()
    pairing.run(12)
    assert isinstance(pairing.machine.outcome(), Selected)
    assert pairing.agent.answer is not None
    assert pairing.agent.answer[0] == "selected"


@pytest.mark.parametrize("controlling", [True, False])
def test_both_ends_lose_a_path_that_is_cut(controlling: bool) -> None:
    pairing = Pairing(None, None, controlling=controlling)
    pairing.start()
    pairing.run(5)
    pairing.world.cut = lambda crossing: True
    pairing.run(8)
    assert pairing.machine.outcome() == Lost()
    assert pairing.agent.answer == ("lost", None)
