"""Starts everything that is compared, and puts it under each kind of load in turn."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import tools
from bench.measure import OTHER_CORE, Footprint, LoadFailed, Sample, sample
from bench.messages import messages
from bench.openloop import latency
from bench.overlay import machine
from bench.peers import (
    start_caddy,
    start_granian,
    start_haproxy,
    start_mitmproxy,
    start_nginx,
    start_uvicorn,
)
from bench.product import Product, start_product
from bench.results import Results
from bench.rows import (
    CADDY,
    CADDY_LOG,
    CADDY_NOW,
    GRANIAN,
    HAPROXY,
    MITMPROXY,
    NGINX,
    NGINX_LOG,
    PRODUCT,
    TRACED,
    UVICORN,
    Row,
)
from bench.servers import Subject, start_upstream
from examples.demo.processes import Processes
from examples.demo.stack import Stack, stack

LATENCY_SUBJECTS = (NGINX, HAPROXY, CADDY, CADDY_NOW, PRODUCT)
_FAILED = (OSError, RuntimeError, LookupError, ValueError, TimeoutError, LoadFailed, tools.ToolMissing)


@dataclass(slots=True)
class Field:
    """Everything that runs.

    Attributes:
        subjects: in the order in which they take turns.
        upstream: its port.
    """

    house: Stack
    upstream: int
    subjects: list[Subject] = field(default_factory=list)
    product: Product | None = None


async def start(
    exits: AsyncExitStack, directory: Path, chosen: Sequence[str], rows: Sequence[Row], results: Results
) -> Field:
    """Start the chosen subjects; one that does not start is a failure of the results, and the others go on."""
    where = None
    tool_processes = await exits.enter_async_context(Processes(directory / "tools"))
    if PRODUCT in chosen and any(row.entry == "private" for row in rows):
        if os.geteuid() == 0:
            where = await exits.enter_async_context(machine(tool_processes))
        else:
            results.failures.append("The overlay: its network namespace needs root.")
    house = await exits.enter_async_context(stack(directory, host=where.host if where else "127.0.0.1"))
    processes, certificates = house.processes, house.certificates
    upstream = await start_upstream(processes, directory)
    made = Field(house, upstream)

    async def current_caddy() -> Subject:
        program = tools.current_caddy()
        return await start_caddy(processes, directory, upstream, certificates, program=program, name=CADDY_NOW)

    async def product() -> Subject:
        echo = 0
        if any(row.message for row in rows):
            server = await start_uvicorn(processes, certificates, name="echo", core=OTHER_CORE)
            echo = int(server.urls["messages"].rpartition(":")[2])
        made.product = await start_product(house, upstream, where, echo=echo, traced=TRACED in chosen)
        return made.product.subject

    async def traced() -> Subject:
        if made.product is None or not made.product.traced:
            raise LookupError("the product did not start")
        return made.product.traced[0]

    starts: dict[str, Callable[[], Awaitable[Subject]]] = {
        NGINX: lambda: start_nginx(processes, directory, upstream, certificates),
        NGINX_LOG: lambda: start_nginx(processes, directory, upstream, certificates, log=True),
        HAPROXY: lambda: start_haproxy(processes, directory, upstream, certificates),
        CADDY: lambda: start_caddy(processes, directory, upstream, certificates),
        CADDY_NOW: current_caddy,
        CADDY_LOG: lambda: start_caddy(processes, directory, upstream, certificates, log=True),
        UVICORN: lambda: start_uvicorn(processes, certificates),
        GRANIAN: lambda: start_granian(processes, tools.python_tools()),
        MITMPROXY: lambda: start_mitmproxy(processes, directory, upstream, certificates, tools.python_tools()),
        PRODUCT: product,
        TRACED: traced,
    }
    for name, begin in starts.items():
        if name not in chosen:
            continue
        try:
            made.subjects.append(await begin())
        except _FAILED as error:
            results.fail(name, error)
    results.machine |= versions()
    return made


def versions() -> dict[str, str]:
    """The releases that are compared, as far as their programs state them."""
    programs = {"nginx": ["nginx", "-v"], "HAProxy": ["haproxy", "-v"], "Caddy": ["caddy", "version"]}
    stated = {name: tools.version(argv) for name, argv in programs.items()}
    stated[CADDY_NOW] = tools.CADDY_VERSION
    pinned = dict(line.split("==") for line in tools.REQUIREMENTS.read_text().split())
    return {name: text for name, text in stated.items() if text} | {
        name: pinned[name] for name in ("granian", "mitmproxy")
    }


def subjects_of(row: Row, subjects: Sequence[Subject]) -> list[Subject]:
    return [each for each in subjects if each.name in row.subjects and row.entry in each.urls]


async def _turn(row: Row, subject: Subject, seconds: float) -> Sample:
    url, host = subject.urls[row.entry] + row.path, subject.hosts.get(row.entry, "localhost")
    prefix = subject.prefix.get(row.entry, ())
    if row.large and prefix:  # a slow client behind a tunnel would not get one whole body through
        seconds *= 3
    if row.message:
        return await messages(
            subject.process.pid, url, host=host, size=row.message, seconds=seconds, connections=row.connections
        )
    return await sample(
        subject.process.pid, url, host=host, seconds=seconds, connections=row.connections, prefix=prefix,
        headers=row.headers, script=row.script,
    )  # fmt: skip


async def rounds(
    made: Field, rows: Sequence[Row], results: Results, *, count: int, seconds: float, until: float
) -> None:
    """Every row's subjects one after another, `count` times after a warm-up; fewer times when the time runs out.

    The results are saved after each round. A subject that fails under a row is left out of the rest of that row.

    Args:
        until: no round begins at or after this moment of `time.monotonic()`, but the first.
    """
    broken: set[tuple[str, str]] = set()
    for subject in made.subjects:
        results.footprints[subject.name] = [Footprint.of(subject.process.pid)]
    lasted = 0.0
    for number in range(count + 1):
        begun = time.monotonic()
        if number > 1 and begun + lasted > until:
            results.failures.append(f"Round {number} of {count}: the time was up.")
            break
        for row in rows:
            for subject in subjects_of(row, made.subjects):
                if (row.key, subject.name) in broken:
                    continue
                try:
                    got = await _turn(row, subject, seconds if number else 1)
                except _FAILED as error:
                    broken.add((row.key, subject.name))
                    results.fail(f"{subject.name}, {row.title}", error)
                    continue
                if number:
                    results.add(row.key, subject.name, got)
                    shown = f"{number} {row.key:14} {subject.name:28} {got.cpu_per_thousand:9.4f} s/1000"
                    print(f"{shown} {got.rate:9,.0f}/s", flush=True)
        lasted = time.monotonic() - begun
        if number:
            for subject in made.subjects:
                if subject.process.running:
                    results.footprints[subject.name].append(Footprint.of(subject.process.pid))
            results.save()


async def latencies(made: Field, results: Results, *, count: int, seconds: float) -> None:
    """An open loop against the upstream itself and each proxy in turn."""
    ways: dict[str, tuple[str, str]] = {"upstream": (f"http://127.0.0.1:{made.upstream}/", "localhost")}
    for subject in made.subjects:
        if subject.name in LATENCY_SUBJECTS:
            ways[subject.name] = (subject.urls["plain"] + "/", subject.hosts.get("plain", "localhost"))
    for _ in range(count):
        for name, (url, host) in list(ways.items()):
            try:
                got = await latency(url, host=host, seconds=seconds)
            except _FAILED as error:
                results.fail(f"{name}, open loop", error)
                del ways[name]
                continue
            results.latencies.setdefault(name, []).append(got)
            print(f"{name:28} p50 {got.p50 * 1e6:6.0f} µs  p99 {got.p99 * 1e6:6.0f} µs", flush=True)
    results.save()


async def hold(made: Field) -> None:
    """Print process ids and addresses, and wait until the process is asked to end: to profile."""
    for subject in made.subjects:
        print(subject.name, subject.process.pid, subject.urls, subject.hosts, subject.prefix, flush=True)
    await asyncio.Event().wait()
