"""The one timer of an exchange that has guards, and the steps that did not heed it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from netbird_proxy.exchange import Exchange
from netbird_proxy.pipeline.bound import BoundAuthenticator, BoundGuard
from netbird_proxy.pipeline.downstream import Downstream

GRACE = 0.5
"""Seconds that a cancelled step has to return before it is left behind."""
TOLERATED = 16
"""So many steps may be left behind before this process says it is not ready."""


MOST = 1024
"""So many may hang; then guards are not asked at all, since each of them may be one more."""


class LeftBehind:
    """Steps that swallowed their cancellation and still hang. Each holds a task that nobody can end.

    Attributes:
        count: how many hang now.
        total: how many there have been.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self._answers: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        return self.count <= TOLERATED

    @property
    def full(self) -> bool:
        return self.count >= MOST

    def left(self, answer: Coroutine[Any, Any, None]) -> None:
        """Count one, and run the answer that its exchange still owes, in a task that is kept here until it is done."""
        self.count += 1
        self.total += 1
        task = asyncio.get_running_loop().create_task(answer)
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    def returned(self) -> None:
        self.count -= 1

    async def answered(self) -> None:
        """Wait until every answer that is owed has been given."""
        while self._answers:
            await asyncio.wait(set(self._answers))


class Abandoned(Protocol):
    """Who answers for an exchange whose own task hangs in a step."""

    def abandoned(
        self, deadline: Deadline, exchange: Exchange, downstream: Downstream
    ) -> Coroutine[Any, Any, None]: ...


class Asking:
    """Guards being asked about one exchange.

    Attributes:
        step: whose code is running; None: our own.
    """

    __slots__ = ("step",)

    def __init__(self) -> None:
        self.step: BoundGuard | BoundAuthenticator | None = None

    def stop(self) -> None:
        """Time that passes from now on is the client's, not a step's."""

    def restart(self) -> None:
        """The step's time begins anew."""


class Deadline(Asking):
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
        "_left_behind",
        "_loop",
        "_seconds",
        "abandoned",
        "blamed",
        "expired",
        "task",
    )

    def __init__(
        self,
        seconds: float,
        grace: float,
        left_behind: LeftBehind,
        answering: Abandoned,
        exchange: Exchange,
        downstream: Downstream,
    ) -> None:
        self.step = None
        self.blamed: BoundGuard | BoundAuthenticator | None = None
        self.expired = False
        self.abandoned = False
        self._seconds = seconds
        self._grace = grace
        self._left_behind = left_behind
        self._answering = answering
        self._exchange = exchange
        self._downstream = downstream
        # Our own listener knows its task; to ask for the current one is a system call on 3.11.
        connection = downstream.connection
        task = asyncio.current_task() if connection is None else connection.task
        assert task is not None, "the application runs in a task"  # noqa: S101 - narrows; asyncio promises it
        self.task = task
        self._loop = task.get_loop()
        self._handle = self._loop.call_later(seconds, self._on_expiry)

    def stop(self) -> None:
        self._handle.cancel()

    def restart(self) -> None:
        self._handle = self._loop.call_later(self._seconds, self._on_expiry)

    def _on_expiry(self) -> None:
        self.expired = True
        self.blamed = self.step
        self.task.cancel()
        self._handle = self._loop.call_later(self._grace, self._on_grace)

    def _on_grace(self) -> None:
        self.abandoned = True
        self._left_behind.left(self._answering.abandoned(self, self._exchange, self._downstream))
