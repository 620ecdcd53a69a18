"""Figures that are no row of load: memory of idle connections, starts, workers, instructions."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench import alone, inmemory, instructions
from bench.idle import allow_descriptors, holding
from bench.measure import Footprint, LoadFailed, sample
from bench.results import Results
from bench.servers import start_upstream
from examples.demo.processes import BIN, Processes
from examples.demo.stack import free_port

IDLE = 10_000
_WARM = 200
_LIMITS = (
    "[limits]\nconnections = 60_000\nconnections_share = 1.0\nin_flight = 60_000\nin_flight_share = 1.0\n"
    "keep_alive = 600.0\nupgrade_idle = 600.0\nmin_rate = 0\ndrain = 0.0\n"
)
"""The bench is one client, and its connections do nothing for longer than a client's may."""


async def idle(processes: Processes, directory: Path, upstream: int, results: Results, count: int = IDLE) -> None:
    """Bytes of resident memory that each idle connection, and each idle websocket, adds to a proxy."""
    descriptors = allow_descriptors(2 * count + 1_000)
    for name, websockets in (("connections", False), ("websockets", True)):
        fit = min(count, (descriptors - 500) // (2 if websockets else 1))
        if fit < count:
            results.failures.append(f"Idle {name}: {fit:,} of {count:,}, as many as this user's limit of descriptors.")
        serve = free_port() if websockets else 0
        proxy = await alone.start(processes, directory / f"idle-{name}", serve or upstream, extra=_LIMITS)
        async with holding(proxy.port, fit, host=alone.HOST, websockets=websockets, serve=serve) as held:
            async with holding(proxy.port, _WARM, host=alone.HOST, websockets=websockets) as warm:
                await warm.open()
            before = Footprint.of(proxy.process.pid)
            await held.open()
            after = Footprint.of(proxy.process.pid)
        results.figures[f"idle: {name}"] = (after.resident - before.resident) * 1024 * 1024 / fit
        await proxy.process.stop()


async def cold(processes: Processes, directory: Path, upstream: int, results: Results, rounds: int = 5) -> None:
    """CPU until the first answer, beside that of imports alone, in turns; the cheapest of each."""
    starts, bare = [], []
    await alone.cold_start(processes, directory / "cold-warm", upstream)  # writes bytecode
    for number in range(rounds):
        starts.append(await alone.cold_start(processes, directory / f"cold-{number}", upstream))
        bare.append(await alone.imports())
    results.figures["cold: proxy"], results.figures["cold: imports"] = min(starts), min(bare)


async def workers(processes: Processes, directory: Path, upstream: int, results: Results, rounds: int = 3) -> None:
    """CPU a request of two workers beside one's on the same core, and how connections are shared out."""
    code, output, _ = await processes.run([str(BIN / "netbird-proxy"), "run", "--help"], env={"COLUMNS": "200"})
    if code or "--workers" not in output:
        raise LookupError("this version has no such option")
    single = await alone.start(processes, directory / "workers-1", upstream)
    double = await alone.start(processes, directory / "workers-2", upstream, options=("--workers", "2"))
    costs: dict[str, list[float]] = {"one": [], "two": []}
    for number in range(rounds + 1):
        for name, proxy in (("one", single), ("two", double)):
            got = await sample(
                proxy.process.pid, f"http://127.0.0.1:{proxy.port}/", host=alone.HOST, seconds=2, connections=64
            )
            if number:
                costs[name].append(got.cpu_per_thousand)
    for name, series in costs.items():
        results.figures[f"workers: {name}"] = min(series)
    pids = alone.workers_of(double.process)
    before = [Footprint.of(pid).descriptors for pid in pids]
    async with holding(double.port, 400, host=alone.HOST) as held:
        await held.open()
        grown = [Footprint.of(pid).descriptors - count for pid, count in zip(pids, before, strict=True)]
    shares = sorted(each for each in grown if each > 20)  # others than the members: the parent, a resource tracker
    if len(shares) != 2:
        raise LookupError(f"connections went to {len(shares)} processes: {grown}")
    results.figures["workers: share"] = shares[0] / sum(shares)


async def counted(results: Results) -> None:
    """Instructions of every scheme, of a guard, and of plugins that only are loaded."""
    if not instructions.available():
        raise LookupError("valgrind is not installed")
    names = [scheme.name for scheme in (*inmemory.SCHEMES, inmemory.EXTRAS[0])]
    # Figures that are compared are counted alike: timers add more to a count on a busy machine.
    for schemes, unbound in ((names, 0), ([inmemory.CROWDED], inmemory.UNBOUND)):
        print(f"counting instructions: {', '.join(schemes)}", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            got = await instructions.count(Path(directory), schemes, exchanges=320, unbound=unbound, repeats=2)
        results.figures |= {f"instructions: {name}": number for name, number in got.items()}


async def run(directory: Path, results: Results, *, instructions_too: bool = True) -> None:
    """Each of these, one after another; one that fails is a failure of the results, and the next one begins."""
    async with Processes(directory / "extras") as processes:
        upstream = await start_upstream(processes, directory / "extras")
        parts: dict[str, Callable[[], Awaitable[None]]] = {
            "Idle connections": lambda: idle(processes, directory, upstream, results),
            "Cold start": lambda: cold(processes, directory, upstream, results),
            "`--workers 2`": lambda: workers(processes, directory, upstream, results),
        }
        if instructions_too:
            parts["Instructions"] = lambda: counted(results)
        for name, part in parts.items():
            try:
                await part()
            except (OSError, RuntimeError, LookupError, ValueError, TimeoutError, LoadFailed) as error:
                results.fail(name, error)
            except instructions.CountingFailed as error:
                results.fail(name, error)
            print(f"{name}: {results.figures} (load {os.getloadavg()[0]:.1f})", flush=True)
            results.save()
