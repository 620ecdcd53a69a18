"""The deadline of an exchange whose guards have to wait, and the steps that hang past it."""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Coroutine, Generator
from typing import Any, Protocol, TypeVar

from netbird_host.containment import HungSteps
from netbird_proxy.pipeline.bound import BoundAuthenticator, BoundGuard
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.exchange import Exchange

T = TypeVar("T")

# At this number of hung steps guards are not run any more, because each of them might hang as well.
MAX_HUNG_STEPS = 1024


class Abandoned(Protocol):
    """Answers the client of an exchange whose own task hangs in a step."""

    def abandoned(
        self, deadline: Deadline, exchange: Exchange, downstream: Downstream
    ) -> Coroutine[Any, Any, None]: ...


class AdmissionProgress:
    """Progress of one exchange through its guards and authenticators.

    Attributes:
        step: the step that is running; None while the core's own code runs.
        deadline: the timer, which starts when a step first has to wait.
        since: `time.monotonic` at the start of the steps' time. It is compared as well, because a step that blocks the
            event loop also blocks the timer.
    """

    __slots__ = ("deadline", "since", "step")

    def __init__(self) -> None:
        self.step: BoundGuard | BoundAuthenticator | None = None
        self.deadline: Deadline | None = None
        self.since = time.monotonic()

    def stop(self) -> None:
        """Stop the deadline: the core waits for the client."""
        if self.deadline is not None:
            self.deadline.stop()

    def restart(self) -> None:
        """Start the deadline again, with its full time."""
        self.since = time.monotonic()
        if self.deadline is not None:
            self.deadline.start()


@types.coroutine
def resumed(begun: Coroutine[Any, Any, T], waits_for: object) -> Generator[Any, Any, T]:
    """Resume a coroutine that was started by `send(None)` and waits for `waits_for`."""
    value: T
    while True:
        try:
            yield waits_for
        except BaseException as exc:
            try:
                waits_for = begun.throw(exc)
            except StopIteration as done:
                value = done.value
                return value
        else:
            value = yield from begun
            return value


class Deadline:
    """Cancels an exchange's task when its steps take too long, and answers without it if it still hangs after `grace`.

    Attributes:
        blamed: the step that was running when the time was up.
        expired: this timer cancelled the task. The step has failed, whatever it returns.
        abandoned: the step ignored its cancellation, and the exchange was answered from another task. The exchange's
            own task must not touch it any more.
    """

    __slots__ = (
        "_answering",
        "_downstream",
        "_exchange",
        "_grace",
        "_handle",
        "_hung_steps",
        "_loop",
        "_progress",
        "_seconds",
        "_task",
        "abandoned",
        "blamed",
        "expired",
    )

    def __init__(
        self,
        seconds: float,
        grace: float,
        hung_steps: HungSteps,
        answering: Abandoned,
        progress: AdmissionProgress,
        exchange: Exchange,
        downstream: Downstream,
        task: asyncio.Task[None],
    ) -> None:
        self.blamed: BoundGuard | BoundAuthenticator | None = None
        self.expired = False
        self.abandoned = False
        self._seconds = seconds
        self._grace = grace
        self._hung_steps = hung_steps
        self._answering = answering
        self._progress = progress
        self._exchange = exchange
        self._downstream = downstream
        self._task = task
        self._loop = task.get_loop()
        self._handle: asyncio.TimerHandle | None = None
        progress.deadline = self
        if progress.step is not None:
            self.start()

    def start(self) -> None:
        self._handle = self._loop.call_later(self._seconds, self._on_expiry)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _on_expiry(self) -> None:
        self.expired = True
        self.blamed = self._progress.step
        self._task.cancel()
        self._handle = self._loop.call_later(self._grace, self._on_grace)

    def _on_grace(self) -> None:
        self.abandoned = True
        self._hung_steps.left(self._answering.abandoned(self, self._exchange, self._downstream))
