"""Background work for as long as the host runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from netbird_management import Management, PluginInfo, hookimpl

log = logging.getLogger(__name__)


class Heartbeat:
    """Logs that the host lives."""

    interval = 60.0

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="logs a line a minute")

    @hookimpl
    def lifespan(self, management: Management) -> AbstractAsyncContextManager[None]:
        return self._running()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(self._beat(), name="heartbeat")
            try:
                yield
            finally:
                beating.cancel()

    async def _beat(self) -> None:
        while True:
            log.info("heartbeat")
            await asyncio.sleep(self.interval)
