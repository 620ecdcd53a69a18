"""Slow clients against the proxy, as `slowhttptest` plays them, and how other clients fare meanwhile.

Each mode runs by itself: other clients' rate is measured right before it (their own baseline), then while it runs. The
slow ones come from 127.0.0.1, the others from ::1, as places with an upstream are shared out by client.
Run as `python -m tests.live.slow`; prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.servers import start_upstream
from examples.demo.processes import Processes
from examples.demo.stack import free_port
from tests.live.house import House, house

DOMAIN = "localhost"


@dataclass(frozen=True, slots=True)
class Mode:
    """One way of being slow."""

    name: str
    arguments: tuple[str, ...]
    path: str = "/"


MODES = (
    Mode("slow headers", ("-H", "-i", "5", "-x", "24")),
    Mode("slow body", ("-B", "-i", "5", "-s", "8192", "-x", "24"), "/form"),
    Mode("slow read", ("-X", "-n", "5", "-w", "512", "-y", "1024", "-z", "32", "-k", "3"), "/large"),
    Mode("ranges", ("-R", "-a", "1", "-b", "3000"), "/large"),
)


async def rate(processes: Processes, port: int, seconds: int) -> tuple[float, int]:
    """Requests a second that ordinary clients get through, and how many of all failed."""
    argv = ["wrk", "-t1", "-c16", f"-d{seconds}s", "--timeout", "10s", "-H", f"Host: {DOMAIN}", f"http://[::1]:{port}/"]
    code, output, errors = await processes.run(argv, timeout=seconds + 60)
    if code or "Socket errors" in output:
        print(output + errors, file=sys.stderr)
    found = re.search(r"Requests/sec: +([\d.]+)", output)
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    return float(found[1]) if found else 0.0, int(failed[1]) if failed else 0


async def counters(made: House) -> dict[str, int]:
    transport = httpx.AsyncHTTPTransport(uds=str(made.directory / "admin.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin", timeout=30) as admin:
        found: dict[str, int] = (await admin.get("/state")).json()["counters"]
        return found


async def play(
    processes: Processes, made: House, others: int, mode: Mode, connections: int, seconds: int
) -> tuple[str, ...]:
    baseline, _ = await rate(processes, others, 8)
    before = await counters(made)
    memory = made.memory()["VmRSS"]
    made.forget_peak()
    argv = [
        "slowhttptest", *mode.arguments, "-c", str(connections), "-r", str(connections // 5), "-l", str(seconds),
        "-p", "5", "-u", f"http://{DOMAIN}:{made.http}{mode.path}",
    ]  # fmt: skip
    async with asyncio.TaskGroup() as group:
        attack = group.create_task(processes.run(argv, timeout=seconds + 60))
        await asyncio.sleep(6)  # all of its connections are made by then
        under, failed = await rate(processes, others, seconds - 10)
    _, output, errors = attack.result()
    told = re.sub(r"\x1b\[[\d;]*m", "", output + errors)
    reachable = re.findall(r"service available: +(\w+)", told)
    after = await counters(made)
    grown = (made.memory()["VmHWM"] - memory) / (1 << 20)
    changed = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    return (
        mode.name, f"{baseline:,.0f}", f"{under:,.0f}", f"{under / baseline:.2f}" if baseline else "-", f"{failed:,}",
        f"{reachable.count('YES')} of {len(reachable)}", f"{grown:.0f} MiB",
        ", ".join(f"{name} {count}" for name, count in sorted(changed.items())) or "-",
    )  # fmt: skip


async def run(connections: int, seconds: int, share: float, wanted: Sequence[Mode], directory: Path) -> None:
    async with Processes(directory / "tools") as processes:
        upstream = await start_upstream(processes, directory)
        # nginx answers before it has read a form; this one reads it first.
        reading = await processes.start("form", [sys.executable, "-m", "examples.demo.upstream", "form"])
        form = (await reading.until_line(r"^ready (\d+)"))[1]
        more = f'[[mapping.path]]\npath = "/form"\ntarget = "http://127.0.0.1:{form}"\n'
        more += "[mapping.path.options]\ndirect_upstream = true\n"
        others = free_port()
        listener = f'[[listen]]\naddress = "[::1]:{others}"\n[limits]\nin_flight_share = {share}\n'
        async with house(directory, upstream, domain=DOMAIN, options=more, extra=listener) as made:
            print(f"{connections} slow connections, each mode {seconds} s\n")
            print("| mode | others alone, req/s | others meanwhile | ratio | failed | reachable | memory | counted |")
            print("|---|---|---|---|---|---|---|---|", flush=True)
            for mode in wanted:
                row = await play(processes, made, others, mode, connections, seconds)
                print("| " + " | ".join(row) + " |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make slowhttptest", description=__doc__)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=45)
    parser.add_argument("--share", type=float, default=0.5, help="limits.in_flight_share; 1 shares nothing out")
    parser.add_argument("--mode", default="", help="only those whose name contains it")
    arguments = parser.parse_args()
    wanted = [mode for mode in MODES if arguments.mode in mode.name]
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(arguments.connections, arguments.seconds, arguments.share, wanted, Path(directory)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
