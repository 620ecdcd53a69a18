"""One question for all callers that would ask the same at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """The first caller of a key asks for all that come meanwhile; if it leaves, or fails, the next one asks."""

    def __init__(self) -> None:
        self._asking: dict[K, asyncio.Future[T]] = {}

    async def ask(self, key: K, question: Callable[[], Awaitable[T]]) -> T:
        """The answer to a question of this key that was under way, or to this one. Raises what this one raises."""
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
