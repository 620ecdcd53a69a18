"""Entries on their way to management: a bounded queue, and workers that empty it. No entry is sent twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from netbird_proxy import ManagementError, Proxy
from netbird_wire.extensions import Extension
from netbird_wire.proxy_service_pb2 import AccessLog as Entry
from netbird_wire.proxy_service_pb2 import SendAccessLogRequest

log = structlog.get_logger("netbird_proxy.access_log")

WORKERS = 8
"""NetBird's management takes one entry a call, so several calls must be under way at once."""
BATCH = 256
GATHER = 0.2
"""Seconds for which entries of one batch are gathered: a call costs as much as a hundred entries."""
CALL_TIMEOUT = 10.0
DRAIN_TIMEOUT = 2.0
TELL_INTERVAL = 10.0
"""Seconds between two lines about lost entries."""


class Sender:
    """Takes entries on the loop's hot path and sends them behind its back."""

    def __init__(self, proxy: Proxy, *, queue: int) -> None:
        self._proxy = proxy
        self._queue: asyncio.Queue[Entry] = asyncio.Queue(queue)
        self._lost = 0
        self._told_at = float("-inf")
        self._gathering = asyncio.Lock()
        self._leaving = False

    @property
    def batches(self) -> bool:
        """Whether management is ours, reads many entries a call, and their groups."""
        return Extension.ACCESS_LOG_BATCH in self._proxy.management.extensions

    def put(self, entry: Entry) -> None:
        """Take an entry; drop and count it when the queue is full."""
        try:
            self._queue.put_nowait(entry)
        except asyncio.QueueFull:
            self._lose(1, "the queue is full")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send while this lasts; on leaving, for a bounded time, what is still there."""
        async with asyncio.TaskGroup() as tasks:
            workers = [tasks.create_task(self._work()) for _ in range(WORKERS)]
            try:
                yield
            finally:
                self._leaving = True
                with suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN_TIMEOUT):
                        await self._queue.join()
                for worker in workers:
                    worker.cancel()
        if left := self._queue.qsize():
            self._told_at = float("-inf")
            self._lose(left, "the process ends")

    async def _work(self) -> None:
        while True:
            async with self._gathering:  # one at a time, so that batches are few and full
                entries = [await self._queue.get()]
                batches = self.batches
                if batches:
                    if self._queue.qsize() < BATCH and not self._leaving:
                        await asyncio.sleep(GATHER)
                    while len(entries) < BATCH and not self._queue.empty():
                        entries.append(self._queue.get_nowait())
            try:
                request = SendAccessLogRequest(logs=entries) if batches else SendAccessLogRequest(log=entries[0])
                await self._proxy.management.call("SendAccessLog", request, timeout=CALL_TIMEOUT)
            except Exception as error:  # a log that cannot be sent is no reason to end the proxy
                self._lose(len(entries), str(error) if isinstance(error, ManagementError) else repr(error))
            finally:
                for _ in entries:
                    self._queue.task_done()

    def _lose(self, number: int, why: str) -> None:
        self._proxy.count("access_log_lost", number)
        self._lost += number
        now = time.monotonic()
        if now - self._told_at >= TELL_INTERVAL:  # management away means thousands; the lines themselves are kept
            log.error("access_log.lost", entries=self._lost, reason=why)
            self._told_at, self._lost = now, 0
