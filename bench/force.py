"""10,000 services in force: the CPU of this proxy beside that of the version with which the goal was set.

`python -m bench.force` builds that version once, from this repository's history, into a cache outside of the clone.
Both versions get the same first snapshot from this version's management, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import page, results
from bench.management import first_snapshot
from bench.results import Results
from bench.tools import CACHE, ToolMissing

REFERENCE = "34be8b1"
SERVICES = 10_000
ROOT = Path(__file__).parent.parent


def reference() -> Path:
    """The folder of the reference's commands; the first call takes minutes. Raises ToolMissing."""
    home = CACHE / f"reference-{REFERENCE}"
    if not (home / ".ready").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", REFERENCE], capture_output=True)
        if archive.returncode:
            raise ToolMissing(f"the reference {REFERENCE}: {archive.stderr.decode().strip()}")
        subprocess.run(["tar", "x", "-C", str(home)], input=archive.stdout, check=True)
        built = subprocess.run(["make", "-C", str(home), "engine"], capture_output=True, text=True)
        if built.returncode:
            raise ToolMissing(f"the reference {REFERENCE}: {built.stderr.strip().rpartition(chr(10))[2]}")
        (home / ".ready").touch()
    return home / ".venv" / "bin"


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def cost(directory: Path, services: int, commands: Path | None) -> float:
    """CPU seconds of a proxy until the snapshot is in force."""
    rows = await first_snapshot(directory, services, commands)
    (cpu,) = (row.value for row in rows if row.what == "… CPU of that proxy until then")
    return cpu


async def measure(directory: Path, made: Results, *, services: int, rounds: int) -> None:
    versions: dict[str, Path | None] = {"now": None}
    try:
        versions["reference"] = await asyncio.to_thread(reference)
    except (ToolMissing, OSError, subprocess.SubprocessError) as error:
        made.fail("The reference", error)
    costs: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, commands in versions.items():
            costs.setdefault(name, []).append(await cost(_made(directory / f"{name}-{number}"), services, commands))
            print(f"{number + 1} {name:10} {costs[name][-1]:6.2f} s CPU", flush=True)
            made.figures |= {f"force: {each}": min(every) for each, every in costs.items()}
            made.save()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.force", description=__doc__)
    parser.add_argument("--services", type=int, default=SERVICES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", action=argparse.BooleanOptionalAction, default=True, help="write results and pages")
    given = parser.parse_args()
    made = results.begun("management", rounds=given.rounds, services=given.services)
    directory = Path(tempfile.mkdtemp(prefix="netbird-bench-"))
    made.directory = results.DIRECTORY if given.write else directory
    try:
        asyncio.run(measure(directory, made, services=given.services, rounds=given.rounds))
    except BaseException as error:
        made.fail("10,000 services in force", error)
        print(f"logs: {directory}; results: {made.save()}", file=sys.stderr)
        raise
    made.save()
    print(made.figures, *made.failures, sep="\n")
    if given.write:
        page.write()
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
