"""Instructions an exchange takes, counted by callgrind on wires in memory: a number that no neighbor changes."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

EXCHANGES = 640
_TOTALS = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


class CountingFailed(Exception):
    """Callgrind or what it runs ended early; the message holds what they said."""


def available() -> bool:
    return all(map(shutil.which, ("valgrind", "callgrind_control")))


async def count(
    directory: Path, names: Sequence[str], *, exchanges: int = EXCHANGES, unbound: int = 0, repeats: int = 1
) -> dict[str, float]:
    """Instructions an exchange, by scheme: all threads, the client's and the upstream's part of some 2,000 included.

    Args:
        unbound: so many further plugins are loaded that bind nothing.
        repeats: the smallest of so many counts is taken: timers, which run by the clock, can only add to one.
    """
    out = directory / "callgrind.out"
    log = directory / "callgrind.log"
    argv = [
        "setarch",
        "-R",
        "valgrind",
        "--tool=callgrind",
        "--instr-atstart=no",
        f"--callgrind-out-file={out}",
        f"--log-file={log}",
    ]
    process = await asyncio.create_subprocess_exec(
        *argv, sys.executable, "-m", "bench.inmemory", str(unbound),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    replies, orders = process.stdout, process.stdin
    assert replies is not None
    assert orders is not None

    async def next_reply() -> None:
        async with asyncio.timeout(600):
            if not await replies.readline():
                raise CountingFailed(_text(log))

    async def play(name: str) -> None:
        orders.write(f"{name} {exchanges}\n".encode())
        await next_reply()

    counted: dict[str, float] = {}
    try:
        await next_reply()
        for name in names:
            await _control(process.pid, "--instr=on")
            await play(name)  # translated for counting, and warm
            counts = []
            for _ in range(repeats):
                await _control(process.pid, "--zero")
                await play(name)
                await _control(process.pid, "--dump")
                counts.append(_latest_total(directory, out.name) / exchanges)
            await _control(process.pid, "--instr=off")
            counted[name] = min(counts)
        return counted
    finally:
        orders.close()
        try:
            async with asyncio.timeout(30):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else "valgrind did not start"


def _latest_total(directory: Path, name: str) -> int:
    """Return the count of the last dump; dumps are numbered."""
    dumps = sorted(directory.glob(f"{name}.*"), key=lambda path: int(path.suffix[1:]))
    totals = _TOTALS.search(dumps[-1].read_text()) if dumps else None
    if totals is None:
        raise CountingFailed("callgrind wrote no totals")
    return int(totals[1])


async def _control(pid: int, order: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "callgrind_control", order, str(pid), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(60):
        output = (await process.communicate())[0].decode()
    if process.returncode or "OK." not in output:
        raise CountingFailed(f"callgrind_control {order}: {output}")
