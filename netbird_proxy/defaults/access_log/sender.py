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

import structlog

from netbird_proxy import Backoff, ManagementError, ManagementRefused, ManagementTimeout, ManagementUnavailable, Proxy
from netbird_proxy.defaults.access_log.entry import request_of, under
from netbird_proxy.defaults.access_log.waiting import Call, Waiting
from netbird_wire.extensions import Extension
from netbird_wire.proxy_service_pb2 import SendAccessLogRequest

log = structlog.get_logger("netbird_proxy.access_log")

WORKERS = 64
"""Maximum number of concurrent calls. NetBird's management takes one entry per call, so many are needed."""
GATHER = 0.2
"""Seconds for which the entries of a call are collected, unless they fill it earlier."""
CALL_TIMEOUT = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.2, 2.0
"""Shortest and longest delay in seconds before a call is repeated."""
KEEP, KEEP_ELSEWHERE = 300.0, 30.0
"""Maximum seconds for which a call is repeated: with this project's management, and with others. Another management may
fail for an entry that it has already, and each such call would occupy a worker."""
DRAIN_TIMEOUT = 2.0
REPORT_INTERVAL = 10.0
"""Minimum seconds between two log lines about lost entries."""


class Sender:
    """Queues entries on the request path, and sends them from tasks of its own."""

    def __init__(self, proxy: Proxy, accounts: Collection[str], *, queue: int) -> None:
        """Args:
        accounts: accounts that have, or had, a route on this proxy. The caller adds to it.
        queue: maximum number of entries that wait for a call.
        """
        self._proxy = proxy
        self._accounts = accounts
        self._scoped = False  # the token is an account's: management has refused an entry without an account
        self._loop = asyncio.get_running_loop()
        self._waiting = Waiting(queue)
        self._calls: asyncio.Queue[Call] = asyncio.Queue()  # `_waiting` bounds it
        self._timer: asyncio.TimerHandle | None = None
        self._under_way = 0
        self._leaving = asyncio.Event()
        self._lost = 0
        self._reported_at = float("-inf")

    @property
    def batches(self) -> bool:
        """True if management accepts many entries per call, with the groups of the caller."""
        return Extension.ACCESS_LOG_BATCH in self._proxy.management.extensions

    def put(self, account: str | None, entry: bytes) -> None:
        """Queue an entry; drop and count it if the queue has no room for its account.

        Args:
            account: the account that the entry names; None for the exchange of an unknown host.
        """
        if account is None and self._scoped:
            if len(self._accounts) != 1:
                self._lose(1, "the host is unknown, and the proxy's token is an account's")
                return
            (account,) = self._accounts
            entry = under(account, entry)
        if reason := self._waiting.put(account, entry):
            self._lose(1, reason)
        elif self._timer is None:
            self._timer = self._loop.call_later(GATHER, self._hand_over)
        elif self._waiting.fill_a_call:
            self._timer.cancel()
            self._hand_over()

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
            left += len(self._calls.get_nowait())
        if left:
            self._reported_at = float("-inf")
            self._lose(left, "the process ends")

    def _hand_over(self) -> None:
        self._timer = None
        for call in self._waiting.take(batches=self.batches):
            self._calls.put_nowait(call)

    async def _work(self) -> None:
        while True:
            call = await self._calls.get()
            self._waiting.begin(call)
            self._under_way += len(call)
            try:
                await self._send(call)
            finally:
                self._calls.task_done()
            self._under_way -= len(call)  # not if cancelled: it is not known whether management has them

    async def _send(self, call: Call) -> None:
        try:
            try:
                await self._deliver(call)
            finally:
                self._waiting.end(call)
        except ManagementRefused as error:
            if call.without_account:
                self._send_under_the_only_account(call)
            elif len(call.parts) == 1:
                self._lose(len(call), str(error))
            else:
                # Management may refuse one of the accounts, and the entries of the others must not be lost with it.
                for part in call.parts:
                    try:
                        await self._deliver(Call((part,)))
                    except Exception as failure:
                        self._lose(len(part[1]), _reason(failure))
        except Exception as error:  # a failure to send must not end the proxy
            self._lose(len(call), _reason(error))

    def _send_under_the_only_account(self, call: Call) -> None:
        self._scoped = True
        for entry in call.entries:
            self.put(None, entry)
        if self._leaving.is_set() and self._timer is not None:  # the timer would fire too late
            self._timer.cancel()
            self._hand_over()

    async def _deliver(self, call: Call) -> None:
        backoff, until = (
            Backoff(FIRST_DELAY, LONGEST_DELAY),
            self._loop.time() + (KEEP if self.batches else KEEP_ELSEWHERE),
        )
        while True:
            batch = self.batches or len(call) > 1
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


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ManagementError) else repr(error)
