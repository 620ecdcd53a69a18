"""The gate between the mapping stream and the mappings in force. A stop closes it before parts that they use."""

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
        """Drop further updates and end the one that is being applied, because the parts that steps use will stop."""
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
