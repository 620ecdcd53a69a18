"""Detects code that blocks the event loop. It cannot be stopped, so it is logged and counted, and readiness fails.

A thread watches a pulse that the loop gives. A healthy loop pays a timer four times a second, and requests pay nothing,
because the blocking step is read from the blocked stack instead of being recorded beforehand.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

import structlog

from netbird_proxy.pipeline.bound import (
    BoundAuthenticator,
    BoundGuard,
    BoundObserver,
    BoundResponseTransform,
    BoundSelector,
    BoundTransform,
)
from netbird_proxy.pipeline.endpoint import EndpointApplication

log = structlog.get_logger("netbird_proxy.watchdog")

PULSE = 0.25
"""Maximum time, in seconds, between two beats of the loop, and between two checks of them."""
HOLD = 30.0
"""Seconds without a stall after which the process counts as ready again."""


class Culprit(NamedTuple):
    """The code that blocked the loop. `plugin` is "core" where no plugin's step was running."""

    plugin: str
    stage: str
    where: str


class Watchdog:
    """Watches the loop that runs when `watching` is entered.

    Args:
        stall: seconds without a beat that count as a stall; 0 switches the watchdog off.
        count: called with `loop_stalled`, on the loop once it runs again.

    Attributes:
        last: the code that blocked the loop last.
    """

    def __init__(self, stall: float, *, count: Callable[[str], None] = lambda _name: None, hold: float = HOLD) -> None:
        self._stall = stall
        self._pulse_every = min(PULSE, stall / 4)
        self._hold = hold
        self._count = count
        self._beat = 0.0
        self._ended = -hold  # when the last stall was over
        self._stalled = False
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self.last: Culprit | None = None

    @property
    def ready(self) -> bool:
        """False while the loop is blocked, and for a while after, because code that blocks once is likely to again."""
        return not self._stalled and time.monotonic() - self._ended >= self._hold

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the running loop for as long as the context lasts."""
        if not self._stall:
            yield
            return
        self._loop = asyncio.get_running_loop()
        self._stop.clear()
        self._pulse()
        thread = threading.Thread(target=self._watch, args=(threading.get_ident(),), name="loop watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            if self._handle is not None:
                self._handle.cancel()
            thread.join(1.0)

    def _pulse(self) -> None:
        assert self._loop is not None  # noqa: S101 - set by `watching`
        self._beat = time.monotonic()
        self._handle = self._loop.call_later(self._pulse_every, self._pulse)

    def _watch(self, thread: int) -> None:
        """Watch the beats until `watching` is left; runs in the thread."""
        looked, spent = time.monotonic(), time.process_time()
        while not self._stop.wait(self._pulse_every):
            before, spent_before = looked, spent
            looked, spent = time.monotonic(), time.process_time()
            gap = looked - before
            if gap > self._stall / 2 and spent - spent_before < gap / 10:
                # This thread was late too, and no code kept the interpreter's lock meanwhile (as a regular expression
                # does): the whole process was stopped, or got no processor time.
                self._beat = max(self._beat, looked)
            silent = looked - self._beat
            if silent < self._stall:
                if self._stalled:
                    self._stalled = False
                    self._ended = looked
                    log.warning("loop.resumed", plugin=self.last and self.last.plugin)
            elif not self._stalled:
                self._stalled = True
                self.last = culprit = blame(sys._current_frames().get(thread))
                log.error(
                    "loop.stalled", plugin=culprit.plugin, stage=culprit.stage, where=culprit.where, seconds=silent
                )
                if self._loop is not None and not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(self._count_stall)

    def _count_stall(self) -> None:
        count = self._count
        count("loop_stalled")


def blame(frame: FrameType | None) -> Culprit:
    """Find the step that a stack runs, by the innermost frame that runs one."""
    where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}" if frame is not None else "unknown"
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("netbird_proxy.pipeline."):
            for value in frame.f_locals.values():
                if isinstance(value, BoundGuard | BoundAuthenticator):
                    return Culprit(value.plugin, value.stage, where)
                if isinstance(value, BoundTransform):
                    return Culprit(value.plugin, "transform_request", where)
                if isinstance(value, BoundResponseTransform):
                    return Culprit(value.plugin, "transform_response", where)
                if isinstance(value, BoundSelector):
                    return Culprit(value.plugin, "select", where)
                if isinstance(value, BoundObserver):
                    return Culprit(value.plugin, "observe", where)
                if isinstance(value, EndpointApplication):
                    return Culprit(value.plugin, "endpoint", where)
        frame = frame.f_back
    return Culprit("core", "", where)
