"""How often somebody may be wrong, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from netbird_host.guesses import FREE, LONGEST, SERVICE_FAILURES, Guesses


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_each_wrong_try_costs_twice_the_last(clock: Clock) -> None:
    """Five are free; then one second, two, four, up to the longest; a try while waiting costs nothing."""
    guesses = Guesses(clock)
    waits = []
    for _ in range(FREE + 10):
        assert guesses.reserve("s", "a") == 0
        wait = guesses.reserve("s", "a") if len(waits) >= FREE - 1 else 0.0
        waits.append(wait)
        clock.now += wait

    assert waits[FREE - 2 : FREE + 3] == [0, 1, 2, 4, 8]
    assert waits[-1] == LONGEST


def test_many_at_once_are_no_way_around(clock: Clock) -> None:
    """A try counts from when it is made, not from when it is judged."""
    guesses = Guesses(clock)

    assert [guesses.reserve("s", "a") > 0 for _ in range(20)] == [False] * FREE + [True] * (20 - FREE)


def test_a_right_one_makes_up_for_wrong_ones(clock: Clock) -> None:
    """And one that nobody judged is as if it had not been."""
    guesses = Guesses(clock)
    for _ in range(FREE - 1):
        guesses.reserve("s", "a")
    guesses.reserve("s", "a")
    guesses.right("s", "a")
    for _ in range(FREE - 1):
        assert guesses.reserve("s", "a") == 0
    for _ in range(10):
        assert guesses.reserve("s", "a") == 0
        guesses.unjudged("s", "a")


def test_sources_and_services_are_apart(clock: Clock) -> None:
    """Nobody is held up by another's guesses, nor by their own at another service."""
    guesses = Guesses(clock)
    for _ in range(FREE):
        guesses.reserve("s", "a")

    assert guesses.reserve("s", "a") > 0
    assert guesses.reserve("s", "b") == 0
    assert guesses.reserve("t", "a") == 0


def test_guessing_from_everywhere_stops_strangers_only(clock: Clock) -> None:
    """Many sources, one wrong try each: who was right before still gets in, others wait until it has calmed down."""
    guesses = Guesses(clock)
    guesses.reserve("s", "friend")
    guesses.right("s", "friend")
    for i in range(SERVICE_FAILURES):
        assert guesses.reserve("s", f"bot-{i}") == 0

    assert guesses.reserve("s", "stranger") > 0
    assert guesses.reserve("s", "friend") == 0
    assert guesses.reserve("t", "stranger") == 0
    clock.now += 61
    assert guesses.reserve("s", "stranger") == 0


def test_where_management_counts_strangers_lock_nobody_out_here(clock: Clock) -> None:
    """It knows who was right by way of another proxy; a source is held up here for as long as it says."""
    guesses = Guesses(clock)
    for i in range(2 * SERVICE_FAILURES):
        assert guesses.reserve("s", f"bot-{i}", alone=False) == 0

    assert guesses.reserve("s", "right-elsewhere", alone=False) == 0
    guesses.held("s", "right-elsewhere", 7)
    assert guesses.reserve("s", "right-elsewhere", alone=False) == 7
    clock.now += 7
    assert guesses.reserve("s", "right-elsewhere", alone=False) == 0


def test_a_friends_logins_let_no_stranger_in(clock: Clock) -> None:
    """However often somebody trusted is right meanwhile, the failures of the last minute stay counted."""
    guesses = Guesses(clock)
    guesses.reserve("s", "friend")
    guesses.right("s", "friend")
    for i in range(SERVICE_FAILURES):
        guesses.reserve("s", f"bot-{i}")

    for _ in range(10):
        assert guesses.reserve("s", "friend") == 0
        guesses.right("s", "friend")
        assert guesses.reserve("s", "stranger") > 0


def test_sources_that_nobody_vouches_for_are_held_up_together(clock: Clock) -> None:
    """Inside another server everybody looks alike: one guest's guesses do not lock out the next; all have a bound."""
    guesses = Guesses(clock)

    assert [guesses.reserve("s", "") for _ in range(SERVICE_FAILURES)] == [0.0] * SERVICE_FAILURES
    assert guesses.reserve("s", "") > 0


def test_memory_is_bounded(clock: Clock) -> None:
    """The source that has been quiet for longest is forgotten first."""
    guesses = Guesses(clock, sources=100)
    for i in range(10_000):
        guesses.reserve(f"s{i}", f"source-{i}")

    assert len(guesses._sources) == 100


def test_an_ipv6_host_is_one_source(clock: Clock) -> None:
    """It has a whole network to guess from."""
    guesses = Guesses(clock)
    for i in range(FREE):
        assert guesses.reserve("s", f"2001:db8::{i}") == 0

    assert guesses.reserve("s", "2001:db8:0:0:ffff::1") > 0
    assert guesses.reserve("s", "2001:db8:0:1::1") == 0


@pytest.mark.parametrize("wrong", [0, FREE - 1])
async def test_people_behind_one_address_all_get_in(wrong: int) -> None:
    """Failures count, not logins: twenty at the same moment are judged in turns; a success gives its place back."""
    guesses = Guesses(lambda: 0.0)
    for _ in range(wrong):
        guesses.reserve("s", "a")
    waits: list[float] = []
    at_once = 0

    async def log_in() -> None:
        nonlocal at_once
        async with guesses.turn("s", "a"):
            waits.append(guesses.reserve("s", "a"))
            at_once += 1
            assert at_once < FREE
            for _ in range(5):
                await asyncio.sleep(0)
            at_once -= 1
            guesses.right("s", "a")

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(log_in())

    assert waits == [0.0] * 20
    assert not guesses._judging


async def test_guesses_at_once_are_no_way_around() -> None:
    """Of many wrong tries at the same moment no more are judged than of as many in a row."""
    guesses = Guesses(lambda: 0.0)
    judged = 0

    async def guess() -> None:
        nonlocal judged
        async with guesses.turn("s", "a"):
            judged += guesses.reserve("s", "a") == 0
            await asyncio.sleep(0)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(guess())

    assert judged == FREE
