"""The login throttle, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from netbird_host.login_throttle import FREE, LONGEST, SERVICE_FAILURES, LoginThrottle


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_each_wrong_try_costs_twice_the_last(clock: Clock) -> None:
    """Five tries are free; then the wait is one second, two, four, up to the longest. A try during a wait is free."""
    throttle = LoginThrottle(clock)
    waits: list[float] = []
    for _ in range(FREE + 10):
        assert throttle.reserve("s", "a") == 0
        wait = throttle.reserve("s", "a") if len(waits) >= FREE - 1 else 0.0
        waits.append(wait)
        clock.now += wait

    assert waits[FREE - 2 : FREE + 3] == [0, 1, 2, 4, 8]
    assert waits[-1] == LONGEST


def test_many_at_once_are_no_way_around(clock: Clock) -> None:
    """A try counts from the moment it is made, not from the moment it is judged."""
    throttle = LoginThrottle(clock)

    assert [throttle.reserve("s", "a") > 0 for _ in range(20)] == [False] * FREE + [True] * (20 - FREE)


def test_a_right_one_makes_up_for_wrong_ones(clock: Clock) -> None:
    """A right try resets the failures of its source; a try that was not judged does not count."""
    throttle = LoginThrottle(clock)
    for _ in range(FREE - 1):
        throttle.reserve("s", "a")
    throttle.reserve("s", "a")
    throttle.record_success("s", "a")
    for _ in range(FREE - 1):
        assert throttle.reserve("s", "a") == 0
    for _ in range(10):
        assert throttle.reserve("s", "a") == 0
        throttle.withdraw("s", "a")


def test_sources_and_services_are_apart(clock: Clock) -> None:
    """A source does not wait for failures of other sources, nor for its own at another service."""
    throttle = LoginThrottle(clock)
    for _ in range(FREE):
        throttle.reserve("s", "a")

    assert throttle.reserve("s", "a") > 0
    assert throttle.reserve("s", "b") == 0
    assert throttle.reserve("t", "a") == 0


def test_guessing_from_everywhere_stops_strangers_only(clock: Clock) -> None:
    """While many sources fail once each, a source that was right before may still try; all others must wait."""
    throttle = LoginThrottle(clock)
    throttle.reserve("s", "friend")
    throttle.record_success("s", "friend")
    for i in range(SERVICE_FAILURES):
        assert throttle.reserve("s", f"bot-{i}") == 0

    assert throttle.reserve("s", "stranger") > 0
    assert throttle.reserve("s", "friend") == 0
    assert throttle.reserve("t", "stranger") == 0
    clock.now += 61
    assert throttle.reserve("s", "stranger") == 0


def test_where_management_counts_strangers_lock_nobody_out_here(clock: Clock) -> None:
    """Without the service's limit here, a source waits only as long as management demands."""
    throttle = LoginThrottle(clock)
    for i in range(2 * SERVICE_FAILURES):
        assert throttle.reserve("s", f"bot-{i}", alone=False) == 0

    assert throttle.reserve("s", "right-elsewhere", alone=False) == 0
    throttle.hold_back("s", "right-elsewhere", 7)
    assert throttle.reserve("s", "right-elsewhere", alone=False) == 7
    clock.now += 7
    assert throttle.reserve("s", "right-elsewhere", alone=False) == 0


def test_a_friends_logins_let_no_stranger_in(clock: Clock) -> None:
    """Right tries of a trusted source do not erase the failures of the last minute."""
    throttle = LoginThrottle(clock)
    throttle.reserve("s", "friend")
    throttle.record_success("s", "friend")
    for i in range(SERVICE_FAILURES):
        throttle.reserve("s", f"bot-{i}")

    for _ in range(10):
        assert throttle.reserve("s", "friend") == 0
        throttle.record_success("s", "friend")
        assert throttle.reserve("s", "stranger") > 0


def test_sources_that_nobody_vouches_for_are_held_up_together(clock: Clock) -> None:
    """Clients without an address share only the service's limit: one client's failures do not lock out the next."""
    throttle = LoginThrottle(clock)

    assert [throttle.reserve("s", "") for _ in range(SERVICE_FAILURES)] == [0.0] * SERVICE_FAILURES
    assert throttle.reserve("s", "") > 0


def test_memory_is_bounded(clock: Clock) -> None:
    """The source that was quiet for longest is forgotten first."""
    throttle = LoginThrottle(clock, sources=100)
    for i in range(10_000):
        throttle.reserve(f"s{i}", f"source-{i}")

    assert len(throttle._sources) == 100


def test_an_ipv6_host_is_one_source(clock: Clock) -> None:
    """All addresses of an IPv6 /64 count as one source."""
    throttle = LoginThrottle(clock)
    for i in range(FREE):
        assert throttle.reserve("s", f"2001:db8::{i}") == 0

    assert throttle.reserve("s", "2001:db8:0:0:ffff::1") > 0
    assert throttle.reserve("s", "2001:db8:0:1::1") == 0


@pytest.mark.parametrize("wrong", [0, FREE - 1])
async def test_people_behind_one_address_all_get_in(wrong: int) -> None:
    """Twenty clients behind one address log in at the same moment: they are judged in turn, and all succeed."""
    throttle = LoginThrottle(lambda: 0.0)
    for _ in range(wrong):
        throttle.reserve("s", "a")
    waits: list[float] = []
    at_once = 0

    async def log_in() -> None:
        nonlocal at_once
        async with throttle.turn("s", "a"):
            waits.append(throttle.reserve("s", "a"))
            at_once += 1
            assert at_once < FREE
            for _ in range(5):
                await asyncio.sleep(0)
            at_once -= 1
            throttle.record_success("s", "a")

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(log_in())

    assert waits == [0.0] * 20
    assert not throttle._judging


async def test_guesses_at_once_are_no_way_around() -> None:
    """Concurrent wrong tries are judged no more often than sequential ones."""
    throttle = LoginThrottle(lambda: 0.0)
    judged = 0

    async def guess() -> None:
        nonlocal judged
        async with throttle.turn("s", "a"):
            judged += throttle.reserve("s", "a") == 0
            await asyncio.sleep(0)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(guess())

    assert judged == FREE
