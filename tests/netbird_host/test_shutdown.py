"""Stopping: signals that this process really gets."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from netbird_host.shutdown import Shutdown, on_signals

FOREVER = 50.0


async def test_the_first_signal_asks() -> None:
    """Whoever waits is told the signal's name."""
    with on_signals() as shutdown:
        assert not shutdown.asked
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await shutdown.wait() == "SIGTERM"
        assert not shutdown.cut


async def test_the_second_signal_cuts_what_is_drained() -> None:
    """A drain that would take long ends at once, its work cancelled."""
    with on_signals() as shutdown:
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(10):
            await shutdown.wait()
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
            assert await shutdown.drain(asyncio.Event().wait(), timeout=FOREVER) is False
            assert shutdown.cut
            assert await shutdown.drain(asyncio.Event().wait(), timeout=FOREVER) is False


async def test_a_drain_ends_when_its_work_does() -> None:
    """True for completed work, False after the timeout."""
    shutdown = Shutdown()

    assert await shutdown.drain(asyncio.sleep(0), timeout=FOREVER) is True
    assert await shutdown.drain(asyncio.Event().wait(), timeout=0.01) is False


async def test_a_drain_passes_on_what_its_work_raises() -> None:
    """A TimeoutError of the work's own is not taken for ours."""

    async def fails() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await Shutdown().drain(fails(), timeout=FOREVER)


async def test_signals_are_given_back() -> None:
    """After the end the process reacts to signals as before."""
    with on_signals([signal.SIGUSR1]):
        pass

    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


async def test_a_third_signal_is_the_systems_again() -> None:
    """Whatever hangs after the second one, the process can still be ended."""
    before = signal.getsignal(signal.SIGUSR1)
    with on_signals([signal.SIGUSR1]) as shutdown:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        async with asyncio.timeout(10):
            while not shutdown.cut:  # noqa: ASYNC110 - the loop hands signals on when it comes round
                await asyncio.sleep(0)
        assert signal.getsignal(signal.SIGUSR1) is before
