"""The one timer of an exchange whose guards wait for something, and the steps that did not heed it."""

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

MAX_HUNG_STEPS = 1024
"""So many may hang; then guards are not asked at all, since each of them may be one more."""


class Abandoned(Protocol):
    """Who answers for an exchange whose own task hangs in a step."""

    def abandoned(
        self, deadline: Deadline, exchange: Exchange, downstream: Downstream
    ) -> Coroutine[Any, Any, None]: ...


class AdmissionProgress:
    """Guards being asked about one exchange.

    Attributes:
        step: whose code is running; None: our own.
        deadline: their timer, from when one of them first had to wait.
        since: `time.monotonic` when their time began: a timer runs on the loop, and a step that blocks it would be late
            unseen.
    """

    __slots__ = ("deadline", "since", "step")

    def __init__(self) -> None:
        self.step: BoundGuard | BoundAuthenticator | None = None
        self.deadline: Deadline | None = None
        self.since = time.monotonic()

    def stop(self) -> None:
        """Time that passes from now on is the client's, not a step's."""
        if self.deadline is not None:
            self.deadline.stop()

    def restart(self) -> None:
        """The step's time begins anew."""
        self.since = time.monotonic()
        if self.deadline is not None:
            self.deadline.start()


@types.coroutine
def resumed(begun: Coroutine[Any, Any, T], waits_for: object) -> Generator[Any, Any, T]:
    """Go on with a coroutine that was begun by `send(None)`, from what it waits for."""
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
    """Cancels an exchange's task when its guards take too long; a little later gives up on it.

    Attributes:
        blamed: whose code ran when time was up.
        expired: the task was cancelled by this timer; whatever the step then returns, it has failed.
        abandoned: the step still hung; somebody else has answered, and its task must touch nothing more.
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
