"""`make soak`: mixed load and a change every second for a long time; memory, descriptors and tasks must stay flat."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.schedules.house import House, house, watch_logs
from tests.schedules.story import Schedule

SAMPLES = 60
"""In a run, evenly; the first fifth is warming up and does not count."""
MEMORY, HANDLES = 1.10, 12
"""What the last quarter may have more than the first that counts: a share of memory, a count of the others."""


@dataclass(frozen=True, slots=True)
class Sample:
    """This process's resident bytes, descriptors and tasks."""

    memory: int
    descriptors: int
    tasks: int

    @classmethod
    def now(cls) -> Sample:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()))


@dataclass(slots=True)
class Outcome:
    seconds: float
    asked: int = 0
    served: int = 0
    refused: int = 0
    changes: int = 0
    wrong: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def judge(self) -> None:
        counted = self.samples[len(self.samples) // 5 :]
        quarter = max(1, len(counted) // 4)
        for name in ("memory", "descriptors", "tasks"):
            begin = _median([getattr(sample, name) for sample in counted[:quarter]])
            end = _median([getattr(sample, name) for sample in counted[-quarter:]])
            allowed = begin * MEMORY if name == "memory" else begin + HANDLES
            if end > allowed:
                self.wrong.append(f"{name} went from {begin} to {end}")

    def __str__(self) -> str:
        counted = self.samples[len(self.samples) // 5 :]
        first, last = counted[0], counted[-1]
        return (
            f"{self.seconds:.0f} s, {self.asked} requests ({self.served} served, {self.refused} refused), "
            f"{self.changes} changes; memory {first.memory >> 20} → {last.memory >> 20} MiB, "
            f"descriptors {first.descriptors} → {last.descriptors}, tasks {first.tasks} → {last.tasks}"
            + "".join(f"\n  {wrong}" for wrong in self.wrong)
        )


def _median(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]


class Soak(Schedule):
    """The people of a schedule, without faults, for as long as wanted."""

    def __init__(self, house: House, seconds: float) -> None:
        super().__init__(house, 1)
        self._faults = []
        self._seconds = seconds
        self._outcome = Outcome(seconds)

    async def last(self) -> Outcome:
        start = self._clock()
        next_sample = start
        self._begin()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask_forever(who)) for who in ("alice", "bob", "outside", "outside")]
            tasks += [group.create_task(self._stream(who)) for who in ("alice", "bob", "outside")]
            while (now := self._clock()) < start + self._seconds:
                await self._change()
                self._outcome.changes += 1
                await asyncio.sleep(1.0)
                self._account()
                if now >= next_sample:
                    self._outcome.samples.append(Sample.now())
                    next_sample += self._seconds / SAMPLES
            for task in tasks:
                task.cancel()
        self._outcome.wrong += self._verdict.wrong[:20]
        self._outcome.judge()
        return self._outcome

    def _account(self) -> None:
        """Judge what is over, and forget it: what is measured is the house, and not our notes."""
        self._judge(self._clock())
        over = [one for one in self._asked.values() if one.end]
        self._outcome.asked += len(over)
        self._outcome.served += sum(one.status == 200 for one in over)
        self._outcome.refused += sum(one.status >= 400 for one in over)
        for one in over:
            del self._asked[one.id]
        self._house.seen.clear()
        self._forget_moments()


async def soak(seconds: float) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        async with house(Path(directory), asyncio.Lock()) as one:
            return await Soak(one, seconds).last()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200)
    given = parser.parse_args()
    watch_logs()
    logging.disable(logging.CRITICAL)
    outcome = asyncio.run(soak(given.seconds))
    print(outcome)
    return int(bool(outcome.wrong))


if __name__ == "__main__":
    sys.exit(main())
