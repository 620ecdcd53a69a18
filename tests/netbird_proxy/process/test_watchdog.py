"""A step that blocks the event loop cannot be stopped: it is named, counted, and readiness fails."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from typing import Any

import pytest
from structlog.testing import capture_logs

from netbird_proxy import ALLOW, Guard, ResponseTransform, Selector
from netbird_proxy.process.watchdog import Watchdog
from netbird_proxy.testing.makers import host_origin, route, upstream
from netbird_proxy.testing.transcript import StepHooks, Transcript


def sleeps() -> None:
    time.sleep(0.6)  # what a plugin must not do


def keeps_the_lock() -> None:
    """A regular expression that backtracks: no other thread runs meanwhile either."""
    pattern, until = re.compile(r"(a+)+$"), time.monotonic() + 0.6
    length = 20
    while time.monotonic() < until:
        pattern.match("a" * length + "b")
        length += 1


def hooks(stage: str, block: Any) -> StepHooks:
    async def guard(_exchange: object) -> object:
        block()
        return ALLOW

    def observe(_exchange: object) -> None:
        block()

    def transform(_exchange: object, _head: object) -> None:
        block()

    def pick(_exchange: object, candidates: Any, _tried: object) -> Any:
        block()
        return candidates[0]

    if stage == "select":
        return StepHooks(select=("sleepy", Selector(pick)))
    if stage == "transform_response":
        return StepHooks(transform_response=[("sleepy", ResponseTransform(transform))])
    if stage == "observe":
        return StepHooks(observe=[("sleepy", observe)])
    return StepHooks(restrict=[("quick", Guard(_allow))], **{stage: [("sleepy", Guard(guard))]})


async def _allow(_exchange: object) -> object:
    return ALLOW


@pytest.mark.parametrize("block", [sleeps, keeps_the_lock])
@pytest.mark.parametrize("stage", ["authorize", "select", "transform_response", "observe"])
async def test_a_step_that_blocks_the_loop_is_named(transcript: Any, stage: str, block: Any) -> None:
    """Its plugin and stage stand in the log, it is counted once, and the process says that it is not ready."""
    counted: Counter[str] = Counter()
    watchdog = Watchdog(0.2, count=lambda name: counted.update([name]))
    both = (upstream("http://10.0.0.1:80"), upstream("http://10.0.0.2:80"))
    play: Transcript = transcript(route(to=both), hooks=hooks(stage, block))
    with capture_logs() as logs, watchdog.watching():
        assert watchdog.ready
        await play.request(origin=host_origin())
        await asyncio.sleep(0)  # what was counted from the thread
        ready = watchdog.ready
    play.effects.clear()

    [stalled] = [one for one in logs if one["event"] == "loop.stalled"]
    assert (stalled["plugin"], stalled["stage"]) == ("sleepy", stage)
    assert counted == {"loop_stalled": 1}
    assert not ready


async def test_a_loop_that_runs_again_counts_as_ready_again() -> None:
    """After the hold, and not before."""
    watchdog = Watchdog(0.1, hold=0.3)
    with capture_logs() as logs, watchdog.watching():
        sleeps()
        async with asyncio.timeout(5):
            while not any(one["event"] == "loop.resumed" for one in logs):  # noqa: ASYNC110 - a thread says it
                await asyncio.sleep(0.01)
            assert not watchdog.ready
            while not watchdog.ready:  # noqa: ASYNC110 - it is asked, it does not tell
                await asyncio.sleep(0.01)
    assert watchdog.last is not None
    assert watchdog.last.plugin == "core"
    assert "sleeps" in watchdog.last.where


async def test_zero_watches_nothing() -> None:
    """No thread, and always ready."""
    watchdog = Watchdog(0)
    with watchdog.watching():
        assert not any(thread.name == "loop watchdog" for thread in threading.enumerate())
        assert watchdog.ready
