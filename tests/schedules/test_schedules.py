"""Seeded schedules of changes and faults, each held to the promises; `make schedules` plays many more."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog

from tests.schedules.__main__ import run_many
from tests.schedules.house import watch_logs
from tests.schedules.soak import soak

FIRST = int(os.environ.get("SCHEDULES_FIRST", "10000"))
"""Seeds that `make schedules` does not play by itself."""
EACH = 8


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    watch_logs()
    yield
    structlog.reset_defaults()


@pytest.mark.live
@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", range(5))
async def test_no_promise_breaks_whatever_fails(part: int) -> None:
    """Whatever is changed while whatever fails: nobody is served who may not be, nothing stays open, all comes back."""
    verdicts = await run_many([FIRST + part * EACH + number for number in range(EACH)], houses=2)

    assert len(verdicts) == EACH
    assert not [str(verdict) for verdict in verdicts if verdict.wrong]
    assert sum(verdict.served for verdict in verdicts) > EACH


@pytest.mark.live
@pytest.mark.timeout(240)
async def test_nothing_grows() -> None:
    """Two minutes of mixed load with a change every second: memory, descriptors and tasks stay flat."""
    outcome = await soak(float(os.environ.get("SOAK_SECONDS", "120")))

    assert not outcome.wrong, str(outcome)
    assert outcome.served > outcome.changes > 0
