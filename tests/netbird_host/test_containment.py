"""Exceptions from a plugin's code are the plugin's failure and never end the host."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from netbird_host.containment import describe_error, must_pass

MADE_UP = [ValueError(), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(), BaseException()]


@pytest.mark.parametrize("error", MADE_UP, ids=lambda error: type(error).__name__)
async def test_promise_11_what_a_plugin_makes_up_does_not_pass(error: BaseException) -> None:
    """In a task that was not cancelled, every exception is the plugin's failure."""
    assert not must_pass(error)
    assert not must_pass(BaseExceptionGroup("", [error]))


async def test_a_cancellation_that_was_asked_for_passes() -> None:
    """A cancellation of the calling task passes through the plugin's code."""
    seen: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            seen.append(must_pass(error))
            raise

    async with asyncio.TaskGroup() as group:
        task = group.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
    assert seen == [True]


def test_a_coroutine_that_is_closed_passes() -> None:
    """Without a running loop, the closing of a coroutine and Ctrl-C pass through the plugin's code."""
    seen: list[bool] = []

    class Waits:
        def __await__(self) -> Any:
            yield

    async def work() -> None:
        try:
            await Waits()
        except GeneratorExit as error:
            seen.append(must_pass(error))
            raise

    begun = work()
    begun.send(None)
    begun.close()
    assert seen == [True]
    assert must_pass(KeyboardInterrupt())
    assert not must_pass(SystemExit())


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a defect"), "ValueError: a defect"),
        (SystemExit(), "SystemExit"),
        (ExceptionGroup("", [ValueError("a"), KeyError("b")]), "ValueError: a; KeyError: 'b'"),
        (Mute(), "Mute (its message cannot be read)"),
    ],
)
def test_every_exception_can_be_described(error: BaseException, text: str) -> None:
    """An exception whose message cannot be read is still described."""
    assert describe_error(error) == text
