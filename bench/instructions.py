"""Instructions an exchange takes, counted by callgrind on wires in memory: a number that no neighbor changes."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

EXCHANGES = 640
_TOTALS = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


class CountingFailed(Exception):
    """Callgrind or what it runs ended early; the message holds what they said."""


def available() -> bool:
    return all(map(shutil.which, ("valgrind", "callgrind_control")))


async def count(directory: Path, names: list[str], *, exchanges: int = EXCHANGES) -> dict[str, float]:
    """Instructions an exchange, by scheme: all threads, the client's and the upstream's part of some 2,000 included."""
    out = directory / "callgrind.out"
    log = directory / "callgrind.log"
    argv = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}", f"--log-file={log}"]
    process = await asyncio.create_subprocess_exec(
        *argv, sys.executable, "-m", "bench.inmemory",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    said, told = process.stdout, process.stdin
    assert said is not None
    assert told is not None

    async def heard() -> None:
        async with asyncio.timeout(600):
            if not await said.readline():
                raise CountingFailed(_text(log))

    async def play(name: str) -> None:
        told.write(f"{name} {exchanges}\n".encode())
        await heard()

    found: dict[str, float] = {}
    try:
        await heard()
        for name in names:
            await _control(process.pid, "--instr=on")
            await play(name)  # translated for counting, and warm
            await _control(process.pid, "--zero")
            await play(name)
            await _control(process.pid, "--dump")
            await _control(process.pid, "--instr=off")
            found[name] = _latest_total(directory, out.name) / exchanges
        return found
    finally:
        told.close()
        try:
            async with asyncio.timeout(30):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else "valgrind did not start"


def _latest_total(directory: Path, name: str) -> int:
    """What the last dump counted; dumps are numbered."""
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
