"""Entries on their way to management: a bounded queue, and workers that empty it. No entry is sent twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from netbird_proxy import ManagementError, Proxy
from netbird_proxy.defaults.access_log.entry import request_of
from netbird_wire.extensions import Extension
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
        self._loop = asyncio.get_running_loop()
        self._room = queue
        self._gathered: list[bytes] = []
        self._calls: asyncio.Queue[list[bytes]] = asyncio.Queue()  # one item a call; `_room` bounds it
        self._timer: asyncio.TimerHandle | None = None
        self._lost = 0
        self._told_at = float("-inf")

    @property
    def batches(self) -> bool:
        """Whether management is ours, reads many entries a call, and their groups."""
        return Extension.ACCESS_LOG_BATCH in self._proxy.management.extensions

    def put(self, entry: bytes) -> None:
        """Take an entry; drop and count it when the queue is full."""
        if not self._room:
            self._lose(1, "the queue is full")
            return
        self._room -= 1
        gathered = self._gathered
        gathered.append(entry)
        if self._timer is None:
            self._timer = self._loop.call_later(GATHER, self._hand_over)
        elif len(gathered) == BATCH:
            self._timer.cancel()
            self._hand_over()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send while this lasts; on leaving, for a bounded time, what is still there."""
        async with asyncio.TaskGroup() as tasks:
            workers = [tasks.create_task(self._work()) for _ in range(WORKERS)]
            try:
                yield
            finally:
                if self._timer is not None:
                    self._timer.cancel()
                    self._hand_over()
                with suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN_TIMEOUT):
                        await self._calls.join()
                for worker in workers:
                    worker.cancel()
        left = 0
        while not self._calls.empty():
            left += len(self._calls.get_nowait())
        if left:
            self._told_at = float("-inf")
            self._lose(left, "the process ends")

    def _hand_over(self) -> None:
        self._timer = None
        entries, self._gathered = self._gathered, []
        if self.batches:
            self._calls.put_nowait(entries)
        else:
            for entry in entries:
                self._calls.put_nowait([entry])

    async def _work(self) -> None:
        while True:
            entries = await self._calls.get()
            self._room += len(entries)
            try:
                request = SendAccessLogRequest.FromString(request_of(entries, batch=self.batches or len(entries) > 1))
                await self._proxy.management.call("SendAccessLog", request, timeout=CALL_TIMEOUT)
            except Exception as error:  # a log that cannot be sent is no reason to end the proxy
                self._lose(len(entries), str(error) if isinstance(error, ManagementError) else repr(error))
            finally:
                self._calls.task_done()

    def _lose(self, number: int, why: str) -> None:
        self._proxy.count("access_log_lost", number)
        self._lost += number
        now = time.monotonic()
        if now - self._told_at >= TELL_INTERVAL:  # management away means thousands; the lines themselves are kept
            log.error("access_log.lost", entries=self._lost, reason=why)
            self._told_at, self._lost = now, 0
