"""Entries on their way to management: a bounded queue, and workers that empty it. No entry is taken twice.

An exchange for a host that nobody has belongs to no account. A management-wide token may report it; an account's token
may not, and which of the two ours is only a refusal tells. From then on such entries go under the one account that we
serve, or nowhere.

While management is away, starts again or has no room, calls are made again: an entry has an id, by which management
knows one that it has already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import structlog

from netbird_proxy import Backoff, ManagementError, ManagementRefused, ManagementTimeout, ManagementUnavailable, Proxy
from netbird_proxy.defaults.access_log.entry import request_of, under
from netbird_wire.extensions import Extension
from netbird_wire.proxy_service_pb2 import SendAccessLogRequest

log = structlog.get_logger("netbird_proxy.access_log")

WORKERS = 64
"""Calls under way at most. NetBird's management takes one entry a call, so several must be."""
BATCH = 256
GATHER = 0.2
"""Seconds for which entries of one batch are gathered: a call costs as much as a hundred entries."""
CALL_TIMEOUT = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.2, 2.0
"""Seconds before a call is made again."""
KEEP, KEEP_ELSEWHERE = 300.0, 30.0
"""Seconds for which a call is made again and again. Other managements than ours may take an entry that they have for a
failure of their own, and each such call would hold a worker."""
DRAIN_TIMEOUT = 2.0
TELL_INTERVAL = 10.0
"""Seconds between two lines about lost entries."""


class _Call(NamedTuple):
    """What travels together: only entries of accounts, or only strangers', so that neither is refused for the other."""

    entries: list[bytes]
    strangers: bool


class Sender:
    """Takes entries on the loop's hot path and sends them behind its back."""

    def __init__(self, proxy: Proxy, accounts: Collection[str], *, queue: int) -> None:
        """Args:
        accounts: those that have, or had, a route here; grows meanwhile.
        """
        self._proxy = proxy
        self._accounts = accounts
        self._scoped = False  # our token is an account's: management has refused a stranger's entry
        self._strangers: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._room = queue
        self._gathered: list[bytes] = []
        self._calls: asyncio.Queue[_Call] = asyncio.Queue()  # `_room` bounds it
        self._timer: asyncio.TimerHandle | None = None
        self._under_way = 0
        self._leaving = asyncio.Event()
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

    def put_stranger(self, entry: bytes) -> None:
        """Take the entry of an exchange for a host that nobody has."""
        if self._scoped:
            if len(self._accounts) != 1:
                self._lose(1, "nobody has the host, and our token is an account's")
                return
            (account,) = self._accounts
            self.put(under(account, entry))
            return
        if not self._room:
            self._lose(1, "the queue is full")
            return
        self._room -= 1
        self._strangers.append(entry)
        if self._timer is None:
            self._timer = self._loop.call_later(GATHER, self._hand_over)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send while this lasts; on leaving, for a bounded time, what is still there."""
        async with asyncio.TaskGroup() as tasks:
            workers = [tasks.create_task(self._work()) for _ in range(WORKERS)]
            try:
                yield
            finally:
                self._leaving.set()
                if self._timer is not None:
                    self._timer.cancel()
                    self._hand_over()
                with suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN_TIMEOUT):
                        await self._calls.join()
                for worker in workers:
                    worker.cancel()
        left = self._under_way
        while not self._calls.empty():
            left += len(self._calls.get_nowait().entries)
        if left:
            self._told_at = float("-inf")
            self._lose(left, "the process ends")

    def _hand_over(self) -> None:
        self._timer = None
        for entries, strangers in ((self._gathered, False), (self._strangers, True)):
            size = BATCH if self.batches else 1
            for start in range(0, len(entries), size):
                self._calls.put_nowait(_Call(entries[start : start + size], strangers))
        self._gathered, self._strangers = [], []

    async def _work(self) -> None:
        while True:
            call = await self._calls.get()
            self._room += len(call.entries)
            self._under_way += len(call.entries)
            try:
                await self._deliver(call)
            except ManagementRefused as error:
                if not call.strangers:
                    self._lose(len(call.entries), str(error))
                else:
                    self._scoped = True
                    for entry in call.entries:
                        self.put_stranger(entry)
                    if self._leaving.is_set() and self._timer is not None:  # nobody would wait for it
                        self._timer.cancel()
                        self._hand_over()
            except Exception as error:  # a log that cannot be sent is no reason to end the proxy
                self._lose(len(call.entries), str(error) if isinstance(error, ManagementError) else repr(error))
            finally:
                self._calls.task_done()
            self._under_way -= len(call.entries)  # not where this is cancelled: nobody knows of those

    async def _deliver(self, call: _Call) -> None:
        backoff, until = (
            Backoff(FIRST_DELAY, LONGEST_DELAY),
            self._loop.time() + (KEEP if self.batches else KEEP_ELSEWHERE),
        )
        while True:
            batch = self.batches or len(call.entries) > 1
            request = SendAccessLogRequest.FromString(request_of(call.entries, batch=batch))
            try:
                await self._proxy.management.call("SendAccessLog", request, timeout=CALL_TIMEOUT)
                return
            except (ManagementUnavailable, ManagementTimeout):
                delay = backoff.next_wait()
                if self._loop.time() + delay > until:
                    raise
            if self._leaving.is_set():
                await asyncio.sleep(FIRST_DELAY)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._leaving.wait()

    def _lose(self, number: int, why: str) -> None:
        self._proxy.count("access_log_lost", number)
        self._lost += number
        now = time.monotonic()
        if now - self._told_at >= TELL_INTERVAL:  # management away means thousands; the lines themselves are kept
            log.error("access_log.lost", entries=self._lost, reason=why)
            self._told_at, self._lost = now, 0
