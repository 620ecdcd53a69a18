"""The border between a host and its plugins' code: everything that comes out of it is the plugin's failure, but a
cancellation that somebody asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

GRACE = 0.5
"""Seconds that cancelled code of a plugin has to end before it is left behind."""
TOLERATED = 16
"""So many tasks may be left behind before their process says it is not ready."""


class PluginCrashed(Exception):
    """Code of a plugin raised what is no `Exception`."""


def must_pass(error: BaseException) -> bool:
    """Whether an exception that a plugin's code raised ends the calling task for a reason outside of the plugin.

    Such are a cancellation of the calling task, the closing of a coroutine that nobody runs any more, and an interrupt
    from the keyboard before any loop runs. `SystemExit`, a `CancelledError` of the plugin's own and the like are not:
    they are failures as any `Exception` is.
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
    """The exception's type and message, or those of a group's leaves; also where its own `__str__` fails."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(describe_error, error.exceptions))
    name = type(error).__name__
    try:
        message = str(error)
    except Exception:
        return f"{name} (its message cannot be read)"
    return f"{name}: {message}" if message else name


class LeftBehind:
    """Code of plugins that ignored its cancellation and still hangs. Each piece holds a task that nobody can end.

    Attributes:
        count: tasks that hang now.
        total: tasks that ever did.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self._answers: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        return self.count <= TOLERATED

    def left(self, answer: Coroutine[Any, Any, None]) -> None:
        """Count a task, and run the answer that its exchange still owes in another, which is kept until it is done."""
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
        """Run code of a plugin in a task of its own, for `timeout` seconds, or longer where it may go on by then.

        A caller that is cancelled cancels it. If it ignores its cancellation for `grace` seconds, it is left behind.

        Raises:
            TimeoutError: time is up, whatever the code then does.
            PluginCrashed: it raised what is no Exception, or cancelled itself.
            Exception: it raised that.
        """
        task = asyncio.get_running_loop().create_task(_contained(work))
        try:
            await asyncio.wait((task,), timeout=timeout)
            if not task.done() and goes_on():
                await asyncio.wait((task,))
        except asyncio.CancelledError:
            await self._end(task, grace)
            raise
        if not task.done():
            await self._end(task, grace)
            raise TimeoutError(f"nothing within {timeout:g} s")
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
    """See its exception, so that nobody warns that it was never seen."""
    if not task.cancelled():
        task.exception()


async def _contained(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except BaseException as error:
        if isinstance(error, Exception) or must_pass(error):
            raise
        raise PluginCrashed(describe_error(error)) from error
