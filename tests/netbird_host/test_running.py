"""A host's process ends with its main task, and with no other."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
import uvloop

from netbird_host.running import run_process

LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


@LOOPS
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_promise_11_a_task_that_exits_does_not_end_the_process(loop: object, error: BaseException) -> None:
    """The loop continues; code that awaits the task receives its exception."""
    seen: list[BaseException | None] = []

    async def exits() -> None:
        raise error

    async def main() -> int:
        task = asyncio.get_running_loop().create_task(exits())
        await asyncio.wait((task,))
        seen.append(task.exception())
        return 7

    assert run_process(main(), loop) == 7  # type: ignore[arg-type]
    assert seen == [error]


@LOOPS
def test_main_task_that_exits_ends_the_process(loop: object) -> None:
    """An exit of the main task ends the process with its code."""

    async def main() -> int:
        raise SystemExit(4)

    with pytest.raises(SystemExit):
        run_process(main(), loop)  # type: ignore[arg-type]


HANGS = """
import asyncio
import netbird_host.running as running
running.END = 0.05

async def hangs():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

async def main():
    global kept
    kept = asyncio.get_running_loop().create_task(hangs())
    await asyncio.sleep(0)
    return 5

raise SystemExit(running.run_process(main()))
"""


def test_promise_11_a_task_that_hangs_does_not_hold_up_the_end() -> None:
    """A task that ignores every cancellation ends with the process, whose exit code is the main task's."""
    assert subprocess.run([sys.executable, "-c", HANGS], timeout=60, check=False).returncode == 5
