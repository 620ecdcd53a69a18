"""What stands between the mapping stream and the mappings in force, so that a stop ends both in order."""

from __future__ import annotations

import asyncio

from netbird_proxy.sources.management.stream import MappingSink, Update


class MappingGate:
    """Passes updates to a sink until it is closed."""

    def __init__(self, sink: MappingSink) -> None:
        self._sink = sink
        self._closed = False
        self._applying = asyncio.Lock()
        self._limit: asyncio.Timeout | None = None

    async def close(self) -> None:
        """Put nothing in force from now on: what steps are made of is about to go. Ends what is being put."""
        self._closed = True
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())
        async with self._applying:
            pass

    def stream_opened(self) -> None:
        self._sink.stream_opened()

    def stream_lost(self) -> None:
        self._sink.stream_lost()

    async def apply(self, update: Update) -> None:
        if self._closed:
            return
        async with self._applying:
            self._limit = limit = asyncio.timeout(None)
            try:
                async with limit:
                    await self._sink.apply(update)
            except TimeoutError:
                if not limit.expired():
                    raise
            finally:
                self._limit = None
