"""Concurrent callers with the same question share one call."""

from __future__ import annotations

import asyncio

import pytest

from netbird_host.single_flight import SingleFlight


class Question:
    """A call that ends when the test lets it."""

    def __init__(self) -> None:
        self.times = 0
        self.answers: list[asyncio.Future[str]] = []

    async def __call__(self) -> str:
        self.times += 1
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]

    async def asked(self, times: int) -> None:
        async with asyncio.timeout(10):
            while self.times < times:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)


async def _outcome(flights: SingleFlight[str, str], question: Question) -> type[BaseException] | None:
    try:
        await flights.ask("a", question)
    except (asyncio.CancelledError, RuntimeError) as error:
        return type(error)
    return None


async def test_all_who_wait_get_the_one_answer() -> None:
    """All callers of a key get the one result; other keys are separate calls, and results are not kept."""
    flights: SingleFlight[str, str] = SingleFlight()
    question, other = Question(), Question()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = [group.create_task(flights.ask("a", question)) for _ in range(20)]
        elsewhere = group.create_task(flights.ask("b", other))
        await question.asked(1)
        await other.asked(1)
        question.answers[0].set_result("yes")
        other.answers[0].set_result("no")

    assert ([task.result() for task in waiting], elsewhere.result(), question.times) == (["yes"] * 20, "no", 1)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        again = group.create_task(flights.ask("a", question))
        await question.asked(2)
        question.answers[1].set_result("later")
    assert again.result() == "later"


@pytest.mark.parametrize("how", ["leaves", "fails"])
async def test_the_next_one_asks_when_the_first_does_not_bring_an_answer(how: str) -> None:
    """A caller that leaves or fails does not fail the callers that wait for it."""
    flights: SingleFlight[str, str] = SingleFlight()
    question = Question()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        first = group.create_task(_outcome(flights, question))
        await question.asked(1)
        second = group.create_task(flights.ask("a", question))
        third = group.create_task(flights.ask("a", question))
        await asyncio.sleep(0)
        if how == "fails":
            question.answers[0].set_exception(RuntimeError("broken"))
        else:
            question.answers[0].cancel()
        await question.asked(2)
        question.answers[1].set_result("yes")

    assert (second.result(), third.result(), question.times) == ("yes", "yes", 2)
    assert first.result() is (asyncio.CancelledError if how == "leaves" else RuntimeError)


async def test_who_waits_may_leave() -> None:
    """A waiting caller may be cancelled; the call and the other callers continue."""
    flights: SingleFlight[str, str] = SingleFlight()
    question = Question()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        first = group.create_task(flights.ask("a", question))
        await question.asked(1)
        second = group.create_task(flights.ask("a", question))
        third = group.create_task(flights.ask("a", question))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        question.answers[0].set_result("yes")

    assert (first.result(), second.cancelled(), third.result(), question.times) == ("yes", True, "yes", 1)
