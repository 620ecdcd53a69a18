"""Complete sessions of two agents in virtual time, as transcripts: each message with its second and its sender."""

from __future__ import annotations

from dataclasses import replace

import pytest

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.agent import Failed, Lost, Selected
from netbird_overlay.ice.candidates import Candidate, priority
from netbird_overlay.stun import Kind, parse
from tests.netbird_overlay.ice_machines import Machine, Transcript, decided
from tests.netbird_overlay.nat import Crossing, World

A, B, NOWHERE = Endpoint("192.0.2.1", 51820), Endpoint("192.0.2.2", 51820), Endpoint("192.0.2.99", 51820)


def machines(world: World, *, controlling: tuple[bool, bool] = (True, False)) -> tuple[Machine, Machine]:
    a = Machine(world, world.internet, A, controlling=controlling[0])
    b = Machine(world, world.internet, B, controlling=controlling[1])
    return a, b


def times(machine: Machine) -> list[tuple[float, object]]:
    return [(round(at - 1000, 2), event) for at, event in machine.log]


def test_host_pair_is_nominated_at_once_and_kept_alive() -> None:
    world = World()
    a, b = machines(world)
    transcript = Transcript(world, a=A, b=B)
    a.start(b)
    b.start(a)
    world.run(4.5)
    assert transcript.lines == [
        "0.05 a check controlling",
        "0.05 b check controlled",
        "0.07 a answer",
        "0.07 b answer",
        "0.09 a check controlling use",
        "0.11 b answer",
        "2.11 b check controlled",
        "2.13 a answer",
        "2.13 a check controlling",
        "2.15 b answer",
        "4.11 b check controlled",
        "4.13 a answer",
        "4.13 a check controlling",
        "4.15 b answer",
    ]
    assert times(a) == [(0.13, Selected(B, "host", "host"))]
    assert times(b) == [(0.11, Selected(A, "host", "host"))]


def test_pair_fails_after_eight_checks_and_a_request_revives_it() -> None:
    world = World()
    a, b = machines(world)
    transcript = Transcript(world, a=A, b=B)
    a.start(b)
    a.hear(b.host, 0)
    world.run(3)
    assert transcript.lines == [f"{0.2 * number:.2f} a check controlling" for number in range(8)]
    transcript.lines.clear()
    b.start(a, host_candidates=False)
    b.hear(a.host, 0)
    world.run(1)
    assert transcript.lines == [
        "3.00 b check controlled",
        "3.02 a answer",
        "3.02 a check controlling",
        "3.04 b answer",
        "3.06 a check controlling use",
        "3.08 b answer",
    ]
    assert decided(a, b)


@pytest.mark.parametrize("nth", range(1, 7))
def test_each_lost_message_is_made_good(nth: int) -> None:
    world = World()
    a, b = machines(world)
    crossings: list[Crossing] = []
    world.cut = lambda crossing: crossings.append(crossing) or len(crossings) == nth
    a.start(b)
    b.start(a)
    assert world.run(1, lambda: decided(a, b))
    assert (a.outcome(), b.outcome()) == (Selected(B, "host", "host"), Selected(A, "host", "host"))


def test_lost_answer_to_the_nomination_repeats_it() -> None:
    world = World()
    a, b = machines(world)
    transcript = Transcript(world, a=A, b=B)

    def cut(crossing: Crossing) -> bool:
        transcript.record(crossing)
        return crossing.source == B and crossing.at < 1000.3 and len(b.log) == 1

    world.cut = cut
    a.start(b)
    b.start(a)
    world.run(1)
    assert transcript.lines[4:] == [
        "0.09 a check controlling use",
        "0.11 b answer",  # lost
        "0.29 a check controlling use",
        "0.31 b answer",
    ]
    assert times(a) == [(0.33, Selected(B, "host", "host"))]
    assert times(b) == [(0.11, Selected(A, "host", "host"))]


@pytest.mark.parametrize(
    ("controlling", "tie_breakers", "roles"),
    [
        ((True, True), (9, 5), (True, False)),
        ((True, True), (5, 9), (False, True)),
        ((False, False), (9, 5), (True, False)),
        ((False, False), (5, 9), (False, True)),
    ],
)
def test_conflict_of_roles_is_settled_by_the_tie_breaker(
    controlling: tuple[bool, bool], tie_breakers: tuple[int, int], roles: tuple[bool, bool]
) -> None:
    world = World()
    a, b = machines(world, controlling=controlling)
    a.start(b, tie_breaker=tie_breakers[0])
    b.start(a, tie_breaker=tie_breakers[1])
    assert world.run(1, lambda: decided(a, b))
    assert a.agent is not None
    assert b.agent is not None
    assert (a.agent.controlling, b.agent.controlling) == roles
    assert a.agent.counters["roles_switched"] + b.agent.counters["roles_switched"] == 1


def test_conflict_of_roles_as_messages() -> None:
    world = World()
    a, b = machines(world, controlling=(True, True))
    transcript = Transcript(world, a=A, b=B)
    a.start(b, tie_breaker=9)
    b.start(a, tie_breaker=5)
    b.signalled.clear()  # a begins alone, so that b learns of the conflict by a's request
    world.run(1)
    assert transcript.lines == [
        "0.05 a check controlling",
        "0.07 b answer",
        "0.07 b check controlled",
        "0.09 a check controlling use",
        "0.09 a answer",
        "0.11 b answer",
    ]


def test_conflict_of_roles_as_an_error() -> None:
    world = World()
    a, b = machines(world, controlling=(True, True))
    transcript = Transcript(world, a=A, b=B)
    a.start(b, tie_breaker=9)
    b.start(a, tie_breaker=5)
    a.signalled.clear()  # b begins alone, so that b learns of the conflict by a's error
    world.run(1)
    assert transcript.lines == [
        "0.05 b check controlling",
        "0.07 a error 487",
        "0.10 b check controlled",
        "0.12 a answer",
        "0.12 a check controlling",
        "0.14 b answer",
        "1.00 a check controlling use",
    ]


@pytest.mark.parametrize("controlling", [True, False])
def test_conflict_of_equal_tie_breakers_ends(controlling: bool) -> None:
    world = World(seed=3)
    a, b = machines(world, controlling=(controlling, controlling))
    a.start(b, tie_breaker=7)
    b.start(a, tie_breaker=7)
    assert world.run(2, lambda: decided(a, b))
    assert a.agent is not None
    assert b.agent is not None
    assert a.agent.controlling is not b.agent.controlling


def test_dead_pair_gives_way_to_a_late_candidate() -> None:
    world = World()
    a, b = machines(world)
    to_nowhere = 0

    def cut(crossing: Crossing) -> bool:
        nonlocal to_nowhere
        to_nowhere += crossing.destination == NOWHERE
        return False

    world.cut = cut
    a.start(b, host_candidates=False)
    b.start(a, host_candidates=False)
    a.hear(Candidate("host", NOWHERE, priority("host")), 0.1)
    a.hear(b.host, 8.0)
    world.run(9)
    assert to_nowhere == 8
    assert times(a) == [(8.08, Selected(B, "host", "host"))]
    assert times(b) == [(8.06, Selected(A, "prflx", "host"))]


def test_nothing_is_selected_in_twelve_seconds() -> None:
    world = World()
    a, b = machines(world)
    a.start(b)
    a.hear(Candidate("host", NOWHERE, priority("host")), 11.5)
    world.run(20)
    assert times(a) == [(12.0, Failed())]
    assert a.agent is not None
    assert a.agent.deadline == float("inf")


def test_silent_path_is_lost_after_six_seconds() -> None:
    world = World()
    a, b = machines(world)
    a.start(b)
    b.start(a)
    world.run(5)
    world.cut = lambda crossing: True
    world.run(20)
    assert times(a)[1:] == [(10.15 + 0.02, Lost())]
    assert times(b)[1:] == [(10.15, Lost())]


def test_path_outlives_short_silence() -> None:
    world = World()
    a, b = machines(world)
    a.start(b)
    b.start(a)
    world.run(5)
    world.cut = lambda crossing: crossing.at < 1009.5
    world.run(60)
    assert (len(a.log), len(b.log)) == (1, 1)


def test_ended_agent_answers_on() -> None:
    world = World()
    a, b = machines(world)
    a.start(b)
    world.run(12.5)
    assert times(a) == [(12.0, Failed())]
    transcript = Transcript(world, a=A, b=B)
    b.start(a)
    world.run(0.3)
    assert transcript.lines[:2] == ["0.00 b check controlled", "0.02 a answer"]
    world.run(30)
    assert len(a.log) == 1
    assert times(b)[0] == (24.5, Failed())


@pytest.mark.parametrize(("kind", "at"), [("srflx", 0.5), ("relay", 2.0)])
def test_candidates_wait_for_better_ones_before_they_are_nominated(kind: str, at: float) -> None:
    world = World()
    a, b = machines(world)
    transcript = Transcript(world, a=A, b=B)
    a.start(b, host_candidates=False)
    b.start(a, host_candidates=False)
    a.hear(replace(b.host, type=kind, priority=priority(kind)), 0.0)  # type: ignore[arg-type]
    world.run(3, lambda: decided(a, b))
    assert [line for line in transcript.lines if line.endswith("use")] == [f"{at:.2f} a check controlling use"]


def test_side_without_candidates_is_discovered() -> None:
    world = World()
    a, b = machines(world)
    transcript = Transcript(world, a=A, b=B)
    a.start(b, host_candidates=False)
    b.start(a, host_candidates=False)
    b.hear(a.host, 0.0)
    world.run(3, lambda: decided(a, b))
    assert [line for line in transcript.lines if line.endswith("use")] == ["1.00 a check controlling use"]
    assert a.outcome() == Selected(B, "prflx", "host")
    assert b.outcome() == Selected(A, "host", "host")


def test_better_candidate_in_time_wins() -> None:
    world = World()
    a, b = machines(world)
    better = Endpoint("192.0.2.3", 51820)
    a.start(b, host_candidates=False)
    b.start(a, host_candidates=False)
    a.hear(replace(b.host, type="relay", priority=priority("relay")), 0.0)
    c = Machine(world, world.internet, better, controlling=False)
    c.credentials = b.credentials
    c.start(a, host_candidates=False)
    a.hear(c.host, 1.5)
    world.run(3)
    assert a.outcome() == Selected(better, "host", "host")


@pytest.mark.parametrize("seed", range(200))
def test_both_sides_agree_through_loss_and_reordering(seed: int) -> None:
    world = World(seed=seed, loss=0.2, jitter=0.3)
    a, b = machines(world)
    a.start(b)
    b.start(a)
    assert world.run(6, lambda: decided(a, b))
    assert (a.outcome(), b.outcome()) == (Selected(B, "host", "host"), Selected(A, "host", "host"))


def test_clock_that_jumps_ahead_ends_a_session_once() -> None:
    world = World()
    a, b = machines(world)
    a.start(b)
    b.start(a)
    world.run(3)
    assert a.agent is not None
    a.agent.transmits()
    a.agent.advance(world.now + 3600)
    a.agent.advance(world.now + 7200)
    assert (a.agent.events(), a.agent.transmits()) == ([Lost()], [])


def test_each_check_is_a_transaction_of_its_own() -> None:
    world = World()
    a, b = machines(world)
    seen: list[bytes] = []

    def cut(crossing: Crossing) -> bool:
        message = parse(crossing.datagram)
        if message.kind is Kind.REQUEST:
            seen.append(message.transaction)
        return crossing.destination == B

    world.cut = cut
    a.start(b)
    b.start(a)
    world.run(2)
    assert len(seen) == len(set(seen)) >= 16


def test_ipv6_is_a_path_as_good() -> None:
    world = World()
    here, there = Endpoint("2001:db8:1::1", 51820), Endpoint("2001:db8:2::1", 51820)
    a = Machine(world, world.internet, here, controlling=True)
    b = Machine(world, world.internet, there, controlling=False)
    a.start(b)
    b.start(a)
    assert world.run(1, lambda: decided(a, b))
    assert (a.outcome(), b.outcome()) == (Selected(there, "host", "host"), Selected(here, "host", "host"))


def test_candidates_of_a_family_that_this_side_lacks_wait_in_vain() -> None:
    world = World()
    a, b = machines(world)
    a.start(b)
    b.start(a)
    a.hear(Candidate("host", Endpoint("2001:db8::1", 51820), 2**31 - 1), 0.0)
    sixes: list[Crossing] = []

    def cut(crossing: Crossing) -> bool:
        if ":" in crossing.destination.host:
            sixes.append(crossing)
        return False

    world.cut = cut
    assert world.run(1, lambda: decided(a, b))
    assert (a.outcome(), sixes) == (Selected(B, "host", "host"), [])
