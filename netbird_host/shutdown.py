"""Shutdown on signals: the first drains, the second cuts what is still draining, and the third kills the process."""

from __future__ import annotations

import asyncio
import atexit
import signal
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Shutdown:
    """The state of this process's shutdown."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._drains: set[asyncio.Timeout] = set()
        self.reason = ""
        """The signal's name, or the reason given by the program itself."""
        self.cut = False
        """True after a second request: drains end at once."""

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    async def wait(self) -> str:
        """Wait for a request to stop, and return its reason."""
        await self._asked.wait()
        return self.reason

    def ask(self, reason: str) -> None:
        """Request a stop; a second request ends all drains at once."""
        if self.asked:
            self.cut = True
            for limit in self._drains:
                limit.reschedule(asyncio.get_running_loop().time())
            return
        self.reason = reason
        self._asked.set()

    async def drain(self, work: Awaitable[object], *, timeout: float) -> bool:
        """Wait for `work` for at most `timeout` seconds, and not at all after a second request to stop.

        True if the work was completed; otherwise it was cancelled. Exceptions of the work propagate.
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
def on_signals(signals: Sequence[signal.Signals] = SIGNALS, *, ends_process: bool = False) -> Iterator[Shutdown]:
    """Handle the process's stop signals until the context is left. Main thread only, with a running loop.

    The second signal restores the system's default action, so that a third one kills the process even if it hangs.

    Args:
        ends_process: the process ends after the context. If the first signal arrived before, the second one may arrive
            while the interpreter ends; the exit code is then still that of a proper end.
    """
    loop = asyncio.get_running_loop()
    shutdown = Shutdown()

    def on_signal(name: str) -> None:
        shutdown.ask(name)
        if shutdown.cut:
            restore()

    def restore() -> None:
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, on_signal, number.name)
    try:
        yield shutdown
    finally:
        restore()
        if ends_process and shutdown.asked and not shutdown.cut:
            _expect_another(signals)


def _expect_another(signals: Sequence[signal.Signals]) -> None:
    """Ignore one more signal of each kind until the interpreter's last callbacks, and all from then on."""

    def ignore(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)

    def ignore_all() -> None:
        for number in signals:
            if signal.getsignal(number) is ignore:
                signal.signal(number, signal.SIG_IGN)

    for number in signals:
        signal.signal(number, ignore)
    atexit.register(ignore_all)
