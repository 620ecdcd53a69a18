"""The one timer of an exchange that has guards, and the steps that did not heed it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

GRACE = 0.5
"""Seconds that a cancelled step has to return before it is left behind."""
TOLERATED = 16
"""So many steps may be left behind before this process says it is not ready."""


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


class Deadline:
    """Cancels an exchange's task when its guards take too long; a little later gives up on it.

    Attributes:
        expired: the task was cancelled by this timer; whatever the step then returns, it has failed.
        abandoned: the step still hung; somebody else has answered, and its task must touch nothing more.
    """

    __slots__ = ("_abandon", "_expire", "_grace", "_handle", "_loop", "_seconds", "abandoned", "expired", "task")

    def __init__(
        self, seconds: float, grace: float, on_expiry: Callable[[], None], on_abandon: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(self._loop)
        assert task is not None, "the application runs in a task"  # noqa: S101 - narrows; asyncio promises it
        self.task = task
        self._seconds = seconds
        self._grace = grace
        self._expire = on_expiry
        self._abandon = on_abandon
        self.expired = False
        self.abandoned = False
        self._handle = self._loop.call_later(seconds, self._on_expiry)

    def stop(self) -> None:
        self._handle.cancel()

    def restart(self) -> None:
        """The full time again: what came in between was the client's time, not a step's."""
        self._handle = self._loop.call_later(self._seconds, self._on_expiry)

    def _on_expiry(self) -> None:
        self.expired = True
        self._expire()
        self.task.cancel()
        self._handle = self._loop.call_later(self._grace, self._on_grace)

    def _on_grace(self) -> None:
        self.abandoned = True
        self._abandon()
