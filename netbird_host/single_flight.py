"""Single flight: concurrent callers with the same question share one call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """Shares one call among concurrent callers of a key. If the caller that makes it fails, the next one makes its own.

    A caller that is cancelled counts as failed. Results are not kept.
    """

    def __init__(self) -> None:
        self._asking: dict[K, asyncio.Future[T]] = {}

    async def ask(self, key: K, question: Callable[[], Awaitable[T]]) -> T:
        """Return the result of the call under way for this key, else of `question`, whose exceptions propagate."""
        while (under_way := self._asking.get(key)) is not None:
            await asyncio.wait((under_way,))
            if not under_way.cancelled():
                return under_way.result()
        mine = self._asking[key] = asyncio.get_running_loop().create_future()
        try:
            answer = await question()
        except BaseException:
            mine.cancel()
            raise
        finally:
            del self._asking[key]
        mine.set_result(answer)
        return answer
