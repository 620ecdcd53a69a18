"""Sends access log entries to management: a bounded queue, and workers that empty it.

An exchange for an unknown host belongs to no account. A token for all of management may report it; the token of one
account may not. The proxy learns from management's first refusal that its token is an account's. From then on it sends
such entries under the only account that it serves, or drops them.

While management is unreachable, restarts or is overloaded, calls are repeated. Management recognises an entry that it
has already by its id.
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
"""Maximum number of concurrent calls. NetBird's management takes one entry per call, so many are needed."""
BATCH = 256
GATHER = 0.2
"""Seconds for which the entries of a batch are collected: a call costs as much as a hundred entries."""
CALL_TIMEOUT = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.2, 2.0
"""Shortest and longest delay in seconds before a call is repeated."""
KEEP, KEEP_ELSEWHERE = 300.0, 30.0
"""Maximum seconds for which a call is repeated: with this project's management, and with others. Another management may
fail for an entry that it has already, and each such call would occupy a worker."""
DRAIN_TIMEOUT = 2.0
REPORT_INTERVAL = 10.0
"""Minimum seconds between two log lines about lost entries."""


class _Call(NamedTuple):
    """Entries of one call: either with an account or without, so that management's refusal affects only one kind."""

    entries: list[bytes]
    without_account: bool


class Sender:
    """Queues entries on the request path, and sends them from tasks of its own."""

    def __init__(self, proxy: Proxy, accounts: Collection[str], *, queue: int) -> None:
        """Args:
        accounts: accounts that have, or had, a route on this proxy. The caller adds to it.
        """
        self._proxy = proxy
        self._accounts = accounts
        self._scoped = False  # the token is an account's: management has refused an entry without an account
        self._without_account: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._room = queue
        self._gathered: list[bytes] = []
        self._calls: asyncio.Queue[_Call] = asyncio.Queue()  # `_room` bounds it
        self._timer: asyncio.TimerHandle | None = None
        self._under_way = 0
        self._leaving = asyncio.Event()
        self._lost = 0
        self._reported_at = float("-inf")

    @property
    def batches(self) -> bool:
        """True if management accepts many entries per call, with the groups of the caller."""
        return Extension.ACCESS_LOG_BATCH in self._proxy.management.extensions

    def put(self, entry: bytes) -> None:
        """Queue an entry; if the queue is full, drop and count it."""
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

    def put_without_account(self, entry: bytes) -> None:
        """Queue the entry of an exchange for an unknown host."""
        if self._scoped:
            if len(self._accounts) != 1:
                self._lose(1, "the host is unknown, and the proxy's token is an account's")
                return
            (account,) = self._accounts
            self.put(under(account, entry))
            return
        if not self._room:
            self._lose(1, "the queue is full")
            return
        self._room -= 1
        self._without_account.append(entry)
        if self._timer is None:
            self._timer = self._loop.call_later(GATHER, self._hand_over)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send while the context is open; at its end, send the remaining entries for at most DRAIN_TIMEOUT seconds."""
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
            self._reported_at = float("-inf")
            self._lose(left, "the process ends")

    def _hand_over(self) -> None:
        self._timer = None
        for entries, without_account in ((self._gathered, False), (self._without_account, True)):
            size = BATCH if self.batches else 1
            for start in range(0, len(entries), size):
                self._calls.put_nowait(_Call(entries[start : start + size], without_account))
        self._gathered, self._without_account = [], []

    async def _work(self) -> None:
        while True:
            call = await self._calls.get()
            self._room += len(call.entries)
            self._under_way += len(call.entries)
            try:
                await self._deliver(call)
            except ManagementRefused as error:
                if not call.without_account:
                    self._lose(len(call.entries), str(error))
                else:
                    self._scoped = True
                    for entry in call.entries:
                        self.put_without_account(entry)
                    if self._leaving.is_set() and self._timer is not None:  # the timer would fire too late
                        self._timer.cancel()
                        self._hand_over()
            except Exception as error:  # a failure to send must not end the proxy
                self._lose(len(call.entries), str(error) if isinstance(error, ManagementError) else repr(error))
            finally:
                self._calls.task_done()
            self._under_way -= len(call.entries)  # not if cancelled: it is not known whether management has them

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
        # Without management thousands of entries are lost, and a line for each would flood the log.
        if now - self._reported_at >= REPORT_INTERVAL:
            log.error("access_log.lost", entries=self._lost, reason=why)
            self._reported_at, self._lost = now, 0
