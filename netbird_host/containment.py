"""The border between a host and its plugins' code: every exception that crosses it is the plugin's failure, except a
cancellation of the host's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from netbird_host.tasks import start_owned

T = TypeVar("T")

GRACE = 0.5
"""Seconds for which the host waits for a plugin's cancelled code to end; then it counts as hung."""
TOLERATED = 16
"""Maximum number of hung tasks; beyond it the process reports that it is not ready."""


class PluginCrashed(Exception):
    """A plugin's code raised a BaseException that is not an `Exception`."""


def must_pass(error: BaseException) -> bool:
    """True if an exception from a plugin's code has its cause outside of the plugin, so that the host must re-raise it.

    Such exceptions are a cancellation of the calling task, the closing of an abandoned coroutine, and a keyboard
    interrupt before any loop runs. All others, `SystemExit` and a plugin's own `CancelledError` among them, are the
    plugin's failure like any `Exception`.
    """
    if isinstance(error, Exception):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs
        return isinstance(error, KeyboardInterrupt | GeneratorExit)
    if isinstance(error, asyncio.CancelledError):
        return task is None or task.cancelling() > 0
    return isinstance(error, GeneratorExit) and task is None


def describe_error(error: BaseException) -> str:
    """Return the type and message of an exception, or of each leaf of a group. Never raises, even if `__str__` does."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(describe_error, error.exceptions))
    name = type(error).__name__
    try:
        message = str(error)
    except Exception:
        return f"{name} (its message cannot be read)"
    return f"{name}: {message}" if message else name


class HungSteps:
    """Counts the tasks of plugins' code that ignored their cancellation. Such a task occupies memory until it ends.

    Attributes:
        count: tasks that hang now.
        total: all tasks that have hung since the start.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self._answers: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        return self.count <= TOLERATED

    def left(self, answer: Coroutine[Any, Any, None]) -> None:
        """Count the calling task as hung, and give the client its answer from a new task."""
        self.count += 1
        self.total += 1
        # No group: the answer outlives the task that is counted as hung.
        task = start_owned(answer)
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    def returned(self) -> None:
        self.count -= 1

    async def answered(self) -> None:
        """Wait until every such answer has been given."""
        while self._answers:
            await asyncio.wait(set(self._answers))

    def watch(self, task: asyncio.Task[Any], grace: float) -> None:
        """Count a cancelled task if it has not ended after `grace` seconds."""

        def look() -> None:
            if not task.done():
                self.count += 1
                self.total += 1
                task.add_done_callback(lambda _task: self.returned())

        asyncio.get_running_loop().call_later(grace, look)
        task.add_done_callback(_retrieve)

    async def bounded(
        self,
        work: Coroutine[Any, Any, T],
        *,
        timeout: float,
        grace: float = GRACE,
        goes_on: Callable[[], bool] = lambda: False,
    ) -> T:
        """Run a plugin's code in a task of its own, with a time limit.

        Cancelling the caller cancels the code. Code that ignores its cancellation for `grace` seconds counts as hung.

        Args:
            timeout: maximum time in seconds.
            goes_on: called when the time is up; True lifts the limit.

        Raises:
            TimeoutError: the time is up, whatever the code does then.
            PluginCrashed: the code raised a BaseException that is not an Exception, or cancelled itself.
            Exception: as raised by the code.
        """
        # No group: a group would wait for code that ignores its cancellation.
        task = start_owned(_contained(work))
        try:
            await asyncio.wait((task,), timeout=timeout)
            if not task.done() and goes_on():
                await asyncio.wait((task,))
        except asyncio.CancelledError:
            await self._end(task, grace)
            raise
        if not task.done():
            await self._end(task, grace)
            raise TimeoutError(f"no result within {timeout:g} s")
        if task.cancelled():
            raise PluginCrashed("it cancelled itself")
        return task.result()

    async def _end(self, task: asyncio.Task[Any], grace: float) -> None:
        task.cancel()
        try:
            await asyncio.wait((task,), timeout=grace)
        finally:
            if task.done():
                _retrieve(task)
            else:
                self.count += 1
                self.total += 1
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.returned()
        _retrieve(task)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Retrieve a task's exception, so that asyncio does not warn that it was never retrieved."""
    if not task.cancelled():
        task.exception()


async def _contained(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except BaseException as error:
        if isinstance(error, Exception) or must_pass(error):
            raise
        raise PluginCrashed(describe_error(error)) from error
