"""Compare this proxy with the servers that people would pick, in one run; `make bench`, `bench-quick`, `bench-overlay`.

Results go to `bench/results/NAME.json` after each round, so that a run that is cut short leaves what it measured.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from bench import bulk, compare, extras, page, report, results, rows, schemes
from bench.goals import GOALS
from bench.results import Results
from bench.rows import SUBJECTS, Row

RUNS: dict[str, Sequence[Row]] = {"http": rows.HTTP, "quick": rows.QUICK, "overlay": rows.OVERLAY}
MINUTES = {"http": 8.0, "quick": 1.0, "overlay": 4.0}
"""Time for the rows of load; the other figures of a run take about as long again at most."""


async def run(given: argparse.Namespace, directory: Path, made: Results) -> None:
    chosen = [SUBJECTS[name] for name in given.subjects]
    kinds = [row for row in RUNS[given.run] if not given.rows or row.key in given.rows]
    needed = {name for row in kinds for name in row.subjects}
    async with AsyncExitStack() as exits:
        playing = await compare.start(exits, directory, [name for name in chosen if name in needed], kinds, made)
        if given.hold:
            await compare.hold(playing)
        until = time.monotonic() + given.minutes * 60
        await compare.rounds(playing, kinds, made, count=given.rounds, seconds=given.seconds, until=until)
        if given.run == "quick" or given.rows:
            return
        if given.run == "http":
            await compare.latencies(playing, made, count=3, seconds=given.seconds + 2)
        elif product := playing.product:
            await overlay(given, made)
            callers = await schemes.prepare(product)
            await schemes.compare(product, callers, rounds=given.turns, connections=32)
            schemes.note(callers, made)
    if given.run == "http":
        await extras.run(directory, made)


async def overlay(given: argparse.Namespace, made: Results) -> None:
    """Bytes a CPU second through the tunnel, beside those that OpenSSL seals."""
    series = made.series.get("down-private", {}).get(rows.PRODUCT)
    if series is None:
        return
    made.figures["bulk: bytes a CPU second"] = 10_000_000 * 1000 / series.cpu
    try:
        made.figures["bulk: openssl bytes a second"] = await bulk.openssl()
    except (OSError, LookupError, TimeoutError) as error:
        made.fail("openssl speed", error)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("run", nargs="?", choices=list(RUNS), default="http")
    names = ", ".join(SUBJECTS)
    split = {"type": lambda text: text.split(",")}
    parser.add_argument("--subjects", **split, default=list(SUBJECTS), help=f"comma-separated, of {names}")  # type: ignore[arg-type]
    parser.add_argument("--rows", **split, default=[], help=f"comma-separated, of {', '.join(rows.ROWS)}")  # type: ignore[arg-type]
    parser.add_argument("--seconds", type=float, default=2, help="of each server's turn")
    parser.add_argument("--rounds", type=int, help="3, or 2 of bench-quick")
    parser.add_argument("--minutes", type=float, help="no round of load begins later")
    parser.add_argument("--turns", type=int, default=7, help="rounds in which schemes are compared")
    parser.add_argument(
        "--write", action=argparse.BooleanOptionalAction, help="write results and pages; not if in part"
    )
    parser.add_argument(
        "--hold", action="store_true", help="start all, print process ids, and wait for Ctrl-C: to profile"
    )
    given = parser.parse_args()
    if unknown := [*(set(given.subjects) - set(SUBJECTS)), *(set(given.rows) - set(rows.ROWS))]:
        parser.error(f"no such subject or row: {', '.join(unknown)}")
    given.rounds = given.rounds or (2 if given.run == "quick" else 3)
    given.minutes = given.minutes or MINUTES[given.run]
    if given.write is None:
        given.write = given.run != "quick" and not given.rows and given.subjects == list(SUBJECTS)
    return given


def main() -> int:
    given = arguments()
    directory = Path(tempfile.mkdtemp(prefix="netbird-bench-"))
    (directory / "extras").mkdir()
    made = results.begun(given.run, rounds=given.rounds, seconds=given.seconds)
    made.directory = results.DIRECTORY if given.write else directory
    begun = time.monotonic()
    try:
        asyncio.run(run(given, directory, made))
    except BaseException:
        print(f"logs: {directory}; results: {made.save()}", file=sys.stderr)
        raise
    path = made.save()
    print("", report.provenance(made), report.table(made), sep="\n\n")
    if made.latencies:
        print("", report.latency(made.latencies), sep="\n")
    if goals := [
        goal for goal in GOALS if goal.run == made.name.replace("quick", "http") and goal.value(made) is not None
    ]:
        print("", report.goals({goal.run: made for goal in goals}, goals), sep="\n")
    print(f"\n{(time.monotonic() - begun) / 60:.1f} minutes")
    if given.write:
        print(f"{path}; pages written from: {', '.join(page.write())}")
    if made.failures:
        print("Some of it was not measured: see above.", file=sys.stderr)
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
