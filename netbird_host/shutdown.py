"""Being asked to stop: the first signal asks, the second one cuts, and a third one ends the process as it is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Shutdown:
    """Whether this process was asked to stop, and how urgently."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._drains: set[asyncio.Timeout] = set()
        self.reason = ""
        """The signal's name, or what the program itself said."""
        self.cut = False
        """Whether somebody asked twice: nothing is waited for any more."""

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    async def wait(self) -> str:
        """Until somebody asks; the reason."""
        await self._asked.wait()
        return self.reason

    def ask(self, reason: str) -> None:
        """Ask to stop; a second time, cut at once whatever is drained."""
        if self.asked:
            self.cut = True
            for limit in self._drains:
                limit.reschedule(asyncio.get_running_loop().time())
            return
        self.reason = reason
        self._asked.set()

    async def drain(self, work: Awaitable[object], *, timeout: float) -> bool:
        """Wait for `work`, at most `timeout` seconds, and not at all once somebody asked twice.

        Returns whether it was completed; if not, it was cancelled. What it raises is raised.
        """
        limit = asyncio.timeout(0 if self.cut else timeout)
        try:
            async with limit:
                self._drains.add(limit)
                await work
        except TimeoutError:
            if not limit.expired():
                raise
            return False
        finally:
            self._drains.discard(limit)
        return True


@contextmanager
def on_signals(signals: Sequence[signal.Signals] = SIGNALS) -> Iterator[Shutdown]:
    """Take the process's stop signals for as long as this lasts. In the main thread, with a running loop.

    After the second one they are the system's again: whatever hangs then, a third signal ends it.
    """
    loop = asyncio.get_running_loop()
    shutdown = Shutdown()

    def heard(name: str) -> None:
        shutdown.ask(name)
        if shutdown.cut:
            give_back()

    def give_back() -> None:
        for one in signals:
            loop.remove_signal_handler(one)

    for one in signals:
        loop.add_signal_handler(one, heard, one.name)
    try:
        yield shutdown
    finally:
        give_back()
