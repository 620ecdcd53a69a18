"""`make schedules`: many seeds, several houses at a time; ends with figures, and with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from tests.schedules.house import LOGS, house, watch_logs
from tests.schedules.story import Verdict, run

PER_HOUSE = 25


async def run_many(seeds: list[int], *, houses: int = 4, say: bool = False) -> list[Verdict]:
    """Every seed once; a house is left for a new one after some, so that nothing grows old unseen."""
    waiting = list(reversed(seeds))
    verdicts: list[Verdict] = []
    starting = asyncio.Lock()

    async def work() -> None:
        while waiting:
            with tempfile.TemporaryDirectory(prefix="schedules-") as directory:
                async with house(Path(directory), starting, seed=waiting[-1]) as one:
                    for _ in range(PER_HOUSE):
                        if not waiting:
                            return
                        verdict = await run(one, waiting.pop())
                        verdicts.append(verdict)
                        if say and verdict.wrong:
                            print(verdict, flush=True)
                        elif say and len(verdicts) % 10 == 0:
                            print(f"{len(verdicts)} schedules", flush=True)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(houses, len(seeds))):
            group.create_task(work())
    return verdicts


def figures(verdicts: list[Verdict]) -> str:
    back = sorted(verdict.back for verdict in verdicts)
    cuts = sorted(cut for verdict in verdicts for cut in verdict.cuts) or [0.0]
    return (
        f"{len(verdicts)} schedules, {sum(len(one.faults) for one in verdicts)} faults, "
        f"{sum(one.asked for one in verdicts)} requests ({sum(one.served for one in verdicts)} served, "
        f"{sum(one.refused for one in verdicts)} refused), {sum(bool(one.wrong) for one in verdicts)} broke a promise; "
        f"back after healing: median {back[len(back) // 2]:.2f} s, worst {back[-1]:.2f} s; "
        f"{len(cuts)} streams cut: median {cuts[len(cuts) // 2]:.2f} s, worst {cuts[-1]:.2f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make schedules", description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--houses", type=int, default=4)
    parser.add_argument("--logs", action="store_true", help="show the proxy's events")
    given = parser.parse_args()
    watch_logs()
    LOGS.show = given.logs
    logging.disable(logging.CRITICAL)  # management's word on its failing store
    verdicts = asyncio.run(run_many(list(range(given.first, given.first + given.count)), houses=given.houses, say=True))
    print(figures(verdicts))
    return int(any(verdict.wrong for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
