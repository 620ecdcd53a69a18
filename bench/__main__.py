"""Compare with nginx, Caddy and bare uvicorn, in one run, and write the table to `docs/performance.md`."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from bench import report, schemes
from bench.measure import Footprint, sample
from bench.overlay import machine
from bench.product import Product, start_product
from bench.servers import Subject, start_caddy, start_nginx, start_upstream, start_uvicorn
from examples.demo.processes import Processes
from examples.demo.stack import stack

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
PRODUCT = "netbird-proxy"
SUBJECTS = ("nginx", "nginx-log", "caddy", "caddy-log", "uvicorn", PRODUCT)
LARGE_CONNECTIONS = 2
SCHEMES = "schemes"
KINDS = (*report.KINDS, SCHEMES)


def kinds_of(subject: Subject, wanted: list[str]) -> list[tuple[str, str, str]]:
    """Kind, URL, and which of the subject's entries it belongs to."""
    found = []
    for kind in wanted:
        large, _, entry = kind.partition("-")
        entry = (entry or "plain") if large == "large" else kind
        if entry in subject.urls and (subject.forwards or large != "large"):
            found.append((kind, subject.urls[entry] + ("/large" if large == "large" else "/"), entry))
    return found


async def started(
    exits: AsyncExitStack, directory: Path, chosen: list[str], kinds: list[str]
) -> tuple[list[Subject], Product | None]:
    where = None
    private = PRODUCT in chosen and any("private" in kind or kind == "schemes" for kind in kinds)
    tools = await exits.enter_async_context(Processes(directory / "tools"))
    if private and os.geteuid() == 0:
        where = await exits.enter_async_context(machine(tools))
    elif private:
        print("The overlay needs root for a network namespace: its rows are left out.", file=sys.stderr)
    house = await exits.enter_async_context(stack(directory, host=where.host if where else "127.0.0.1"))
    processes, certificates = house.processes, house.certificates
    upstream = await start_upstream(processes, directory)
    subjects = []
    product = None
    for name in chosen:
        if name.startswith("nginx"):
            one = await start_nginx(processes, directory, upstream, certificates, log=name.endswith("-log"))
        elif name.startswith("caddy"):
            one = await start_caddy(processes, directory, upstream, certificates, log=name.endswith("-log"))
        elif name == "uvicorn":
            one = await start_uvicorn(processes, certificates)
        else:
            product = await start_product(house, upstream, where)
            one = product.subject
        subjects.append(one)
    return subjects, product


async def run(arguments: argparse.Namespace, directory: Path) -> dict[tuple[str, str], str]:
    """What was measured, as text, by the marks between which it belongs."""
    results: dict[tuple[str, str], report.Series] = {}
    async with AsyncExitStack() as exits:
        subjects, product = await started(exits, directory, arguments.subjects, arguments.kinds)
        if arguments.hold:
            for subject in subjects:
                print(subject.name, subject.process.pid, subject.urls, subject.hosts, subject.prefix, flush=True)
            stopped = asyncio.Event()
            for one in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(one, stopped.set)
            await stopped.wait()
            return {}
        held = [report.Held(one.name, Footprint.of(one.process.pid)) for one in subjects]
        for number in range(arguments.rounds + 1):  # the first warms up
            for subject, footprints in zip(subjects, held, strict=True):
                for kind, url, entry in kinds_of(subject, arguments.kinds):
                    found = await sample(
                        subject.process.pid,
                        url,
                        host=subject.hosts.get(entry, "localhost"),
                        seconds=arguments.seconds if number or kind.startswith("large") else 1,
                        connections=LARGE_CONNECTIONS if kind.startswith("large") else arguments.connections,
                        prefix=subject.prefix.get(entry, ()),
                    )
                    if number:
                        series = results.setdefault((subject.name, kind), report.Series(subject.name, kind))
                        series.samples.append(found)
                        print(
                            f"{number} {subject.name:24} {kind:14} {found.cpu_per_thousand:8.4f} s/1000 "
                            f"{found.rate:9,.0f}/s",
                            flush=True,
                        )
                footprints.after.append(Footprint.of(subject.process.pid))
        found_out: dict[tuple[str, str], str] = {}
        if results:
            parts = (
                report.method(arguments.connections, LARGE_CONNECTIONS, arguments.seconds, arguments.rounds),
                report.table(list(results.values())),
                report.footprints(held),
            )
            found_out[report.BEGIN, report.END] = "\n\n".join(parts)
        if product is not None and SCHEMES in arguments.kinds:
            callers = await schemes.prepare(product)
            await schemes.compare(product, callers, rounds=arguments.turns, connections=arguments.connections)
            counted = await schemes.counted(directory)
            found_out[schemes.MARKS] = f"{schemes.method(arguments.turns)}\n\n{schemes.table(callers, counted)}"
    return found_out


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--subjects", type=lambda text: text.split(","), default=list(SUBJECTS), help="comma-separated")
    parser.add_argument(
        "--kinds",
        type=lambda text: text.split(","),
        default=list(KINDS),
        help=f"comma-separated, of {', '.join(KINDS)}",
    )
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=10, help="rounds in which schemes are compared")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--write", action=argparse.BooleanOptionalAction, default=True, help="write the page")
    parser.add_argument(
        "--hold", action="store_true", help="start all, print process ids, and wait for Ctrl-C: to profile"
    )
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="netbird-bench-"))
    try:
        found = asyncio.run(run(arguments, directory))
    except BaseException:
        print(f"logs: {directory}", file=sys.stderr)
        raise
    shutil.rmtree(directory)
    for marks, text in found.items():
        print("\n" + text)
        if arguments.write:
            report.write(PAGE, text, marks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
