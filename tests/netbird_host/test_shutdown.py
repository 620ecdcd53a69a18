"""Shutdown, with real signals to this process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from netbird_host.shutdown import Shutdown, on_signals

FOREVER = 50.0


async def test_the_first_signal_asks() -> None:
    """`wait` returns the name of the first signal."""
    with on_signals() as shutdown:
        assert not shutdown.asked
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await shutdown.wait() == "SIGTERM"
        assert not shutdown.cut


async def test_the_second_signal_cuts_what_is_drained() -> None:
    """A second signal ends a long drain at once and cancels its work."""
    with on_signals() as shutdown:
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(10):
            await shutdown.wait()
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
            assert await shutdown.drain(asyncio.Event().wait(), timeout=FOREVER) is False
            assert shutdown.cut
            assert await shutdown.drain(asyncio.Event().wait(), timeout=FOREVER) is False


async def test_a_drain_ends_when_its_work_does() -> None:
    """`drain` returns True for completed work, False after the timeout."""
    shutdown = Shutdown()

    assert await shutdown.drain(asyncio.sleep(0), timeout=FOREVER) is True
    assert await shutdown.drain(asyncio.Event().wait(), timeout=0.01) is False


async def test_a_drain_passes_on_what_its_work_raises() -> None:
    """A TimeoutError of the work itself propagates and does not count as the drain's own."""

    async def fails() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await Shutdown().drain(fails(), timeout=FOREVER)


async def test_signals_are_given_back() -> None:
    """After the context the process handles signals as before."""
    with on_signals([signal.SIGUSR1]):
        pass

    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


async def test_a_third_signal_is_the_systems_again() -> None:
    """A third signal kills a process that hangs after the second."""
    before = signal.getsignal(signal.SIGUSR1)
    with on_signals([signal.SIGUSR1]) as shutdown:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        async with asyncio.timeout(10):
            while not shutdown.cut:  # noqa: ASYNC110 - the loop hands signals on when it comes round
                await asyncio.sleep(0)
        assert signal.getsignal(signal.SIGUSR1) is before


ENDING = """
import asyncio, sys
from netbird_host.shutdown import on_signals

async def main():
    with on_signals(ends_process=True) as shutdown:
        print("serving", flush=True)
        await shutdown.wait()

asyncio.run(main())
print("ended", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(("late", "code"), [(0, 0), (1, 0), (2, -signal.SIGTERM)])
async def test_a_signal_after_the_end_does_not_look_like_a_kill(late: int, code: int) -> None:
    """A supervisor that asks twice sees a proper end; a third signal kills a process that hangs while it ends."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", ENDING], stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(FOREVER):
        assert await process.stdout.readline() == b"serving\n"
        process.terminate()
        assert await process.stdout.readline() == b"ended\n"
        for _ in range(late):
            process.terminate()
            await _handled(process.pid)
        process.stdin.close()
        assert await process.wait() == code


async def _handled(pid: int) -> None:
    """Wait until no signal is pending for a process, or it has ended."""
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text()  # noqa: ASYNC240 - the kernel's
        except OSError:
            return
        pending = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
        if not any(pending):
            return
        await asyncio.sleep(0)
