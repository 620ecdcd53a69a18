"""Periodic background work while the proxy runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from netbird_proxy import PluginInfo, Proxy, hookimpl


class Heartbeat:
    """Touches a file in the state directory, for an external monitor."""

    interval = 10.0

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="touches a file every ten seconds")

    @hookimpl
    def lifespan(self, proxy: Proxy) -> AbstractAsyncContextManager[None]:
        return self._running(proxy)

    @asynccontextmanager
    async def _running(self, proxy: Proxy) -> AsyncIterator[None]:
        file = proxy.state_directory / "alive"
        file.touch()  # an exception here stops the start
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(self._beat(proxy), name="heartbeat")
            try:
                yield
            finally:
                beating.cancel()
        file.unlink()

    async def _beat(self, proxy: Proxy) -> None:
        while True:
            await asyncio.sleep(self.interval)
            (proxy.state_directory / "alive").touch()
            proxy.count("heartbeats")
