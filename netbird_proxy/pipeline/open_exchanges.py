"""Open exchanges: revalidated after a change, and cut if they may not go on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from netbird_host.containment import GRACE, HungSteps, describe_error, must_pass
from netbird_host.tasks import start_owned
from netbird_proxy.api.exchange import TrailEntry
from netbird_proxy.api.model import AccountId, Challenge, Deny, PublicKey, RouteSpec, ServiceId, UserId
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.ending import Runner
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.pipeline import Pipeline

log = structlog.get_logger("netbird_proxy.exchanges")

INTERVAL = 60.0
"""Seconds between two revalidations of an open exchange if no event reports a change."""
AT_ONCE = 1024
"""Maximum number of exchanges that are revalidated at once: each may cost a call to management."""

ROUTE_GONE = Deny(503, "route_gone", "its route is no longer served")
NOT_REVALIDATED = Deny(503, "not_readmitted", "it was not revalidated in time")


class Matched(Protocol):
    """The route that serves a host and path now."""

    @property
    def spec(self) -> RouteSpec | None: ...

    @property
    def runner(self) -> Runner: ...

    @property
    def upgrades(self) -> Runner: ...


Match = Callable[[str, bytes, AccountId | None], Matched]
"""Finds a route by the folded host, the raw path, and the account of the tunnel (None on a host listener)."""


class OpenExchange:
    """An exchange with its task.

    Attributes:
        due: loop time by which the exchange must be revalidated, else it is cut; None if no revalidation is due.
        late: the timer that cuts the exchange at `due`.
        verdict: the running task that revalidates the exchange.
        again: loop time by which it must be revalidated once more, because of a change after `verdict` started.
    """

    __slots__ = ("again", "downstream", "due", "exchange", "late", "task", "verdict")

    def __init__(self, exchange: Exchange, downstream: Downstream, task: asyncio.Task[None]) -> None:
        self.exchange = exchange
        self.downstream = downstream
        self.task = task
        self.due: float | None = None
        self.late: asyncio.TimerHandle | None = None
        self.verdict: asyncio.Task[None] | None = None
        self.again: float | None = None

    @property
    def over(self) -> bool:
        """True if the exchange has ended for its client. Its task may still hang in a step."""
        return self.downstream.cut is not None or self.exchange.ended_ns != 0

    def cut(self, refusal: Deny) -> None:
        """Cancel the task of the exchange, which resets its upstream and closes or answers its client."""
        if self.downstream.cut is None:
            self.downstream.cut = refusal
            self.task.cancel()

    def stop_timer(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None


class OpenExchanges:
    """Revalidates open exchanges, while `run` runs. Implements `netbird_proxy.OpenExchanges`."""

    def __init__(
        self,
        match: Match,
        *,
        timeout: float,
        interval: float = INTERVAL,
        hung_steps: HungSteps | None = None,
        grace: float = GRACE,
        before_all: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        match: finds the route that serves an open exchange now.
        timeout: maximum seconds for all guards of one exchange. After an event it also limits the wait for a free slot;
            the revalidation after an interval may wait for one interval.
        hung_steps: counts the tasks that ignored their cancellation for `grace` seconds and still hang.
        before_all: called before each revalidation of all exchanges.
        """
        self._match = match
        self._timeout = timeout
        self._before_all = before_all
        self._interval = interval
        self._open: set[OpenExchange] = set()
        self._hung_steps = hung_steps or HungSteps()
        self._grace = grace
        self._requested: dict[OpenExchange, None] = {}
        self._waiting: deque[OpenExchange] = deque()
        self._asked: set[OpenExchange] = set()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, exchange: Exchange, downstream: Downstream) -> OpenExchange:
        """Register an exchange that runs in the calling task."""
        # The listener stores its task; asyncio.current_task() costs a system call on 3.11.
        connection = downstream.connection
        task = asyncio.current_task() if connection is None else connection.task
        assert task is not None, "the application runs in a task"  # noqa: S101 - narrows; asyncio promises it
        entry = OpenExchange(exchange, downstream, task)
        self._open.add(entry)
        return entry

    def leave(self, entry: OpenExchange) -> None:
        self._open.discard(entry)
        self._requested.pop(entry, None)
        entry.stop_timer()

    def revalidate(
        self,
        *,
        account: AccountId | None = None,
        user: UserId | None = None,
        peer: PublicKey | None = None,
        service: ServiceId | None = None,
    ) -> int:
        """Revalidate the exchanges that match all arguments. One without an identity yet matches any user and peer."""
        return self._request(
            entry
            for entry in self._open
            if (route := entry.exchange.route) is not None
            and (account is None or route.account == account)
            and (service is None or route.service == service)
            and ((who := entry.exchange.identity) is None or user is None or who.user_id == user)
            and (who is None or peer is None or who.attributes.get("peer_key") in (None, peer))
        )

    def changed(self, services: frozenset[ServiceId]) -> None:
        """Revalidate the exchanges of services whose routes have changed or are gone."""
        self._request(
            entry
            for entry in self._open
            if entry.exchange.route is not None and entry.exchange.route.service in services
        )

    def _request(self, entries: Iterable[OpenExchange]) -> int:
        requested = dict.fromkeys(entries)
        self._requested.update(requested)
        if requested:
            self._wake.set()
        return len(requested)

    async def run(self) -> None:
        """Revalidate on request, and all exchanges once in each interval, until cancelled."""
        clock = asyncio.get_running_loop().time
        due = clock() + self._interval
        try:
            while True:
                bound = self._timeout
                try:
                    # A deadline and no timeout: frequent requests must not postpone the revalidation of all.
                    async with asyncio.timeout_at(due):
                        await self._wake.wait()
                except TimeoutError:
                    due = clock() + self._interval
                    self._before_all()
                    if not self._requested:
                        bound = max(bound, self._interval)
                    self._request(entry for entry in self._open if entry.exchange.route is not None)
                self._wake.clear()
                requested, self._requested = self._requested, {}
                for entry in requested:
                    self._enqueue(entry, bound)
        finally:
            # Do not wait for the tasks: one that ignores its cancellation would delay the end of the process.
            self._waiting.clear()
            for entry in self._open:
                entry.stop_timer()
            for entry in tuple(self._asked):
                self._release(entry)

    def _enqueue(self, entry: OpenExchange, bound: float) -> None:
        """Revalidate within `bound` seconds, including the wait for a free slot; on expiry the exchange is cut."""
        if entry not in self._open or entry.over:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + bound
        if entry.verdict is not None:
            entry.again = due if entry.again is None else min(entry.again, due)
            return
        waits = entry.due is not None
        if entry.due is None or due < entry.due:
            entry.due = due
            entry.stop_timer()
            entry.late = loop.call_later(bound, self._too_late, entry)
        if not waits:
            self._waiting.append(entry)
        self._fill()

    def _fill(self) -> None:
        """Start waiting revalidations while slots are free."""
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._asked) < AT_ONCE:
            entry = self._waiting.popleft()
            if entry not in self._open or entry.over:
                entry.stop_timer()
                continue
            remaining = self._timeout if entry.due is None else min(self._timeout, entry.due - loop.time())
            entry.stop_timer()
            entry.late = loop.call_later(remaining, self._too_late, entry)
            self._asked.add(entry)
            # No group: it would wait for a verdict that hangs.
            entry.verdict = start_owned(self._revalidate(entry))

    def _too_late(self, entry: OpenExchange) -> None:
        """Cut an exchange at its deadline. A step that hangs must not keep the exchange open, nor its slot."""
        self._cut(entry, NOT_REVALIDATED)
        self._release(entry)

    def _release(self, entry: OpenExchange) -> None:
        """Free the slot, cancel the task that holds it, and start the next one."""
        entry.stop_timer()
        entry.due = None
        self._asked.discard(entry)
        verdict, entry.verdict = entry.verdict, None
        if verdict is not None and not verdict.done():
            verdict.cancel()
            self._hung_steps.watch(verdict, self._grace)
        self._fill()

    def _cut(self, entry: OpenExchange, refusal: Deny) -> None:
        if entry in self._open and not entry.over:
            entry.exchange.trail.append(TrailEntry("revalidate", "core", f"cut {refusal.code}", refusal.reason))
            log.info("exchange.cut", exchange=entry.exchange.id, code=refusal.code, reason=refusal.reason)
            entry.cut(refusal)

    async def _revalidate(self, entry: OpenExchange) -> None:
        """Revalidate one exchange, and cut it unless it may go on. Any failure cuts it."""
        refusal: Deny | None
        try:
            refusal = await self._verdict(entry)
        except BaseException as exc:
            if must_pass(exc):
                raise  # the deadline expired, or the process stops
            refusal = Deny(503, "step_failed", f"revalidation failed: {describe_error(exc)}")
        if entry.verdict is not asyncio.current_task():
            return  # the deadline expired, and the exchange was cut
        if refusal is not None:
            self._cut(entry, refusal)
        again, entry.again, entry.verdict = entry.again, None, None
        self._release(entry)
        if again is not None:
            self._enqueue(entry, max(0.0, again - asyncio.get_running_loop().time()))

    async def _verdict(self, entry: OpenExchange) -> Deny | None:
        was = entry.exchange
        account = was.origin.account if was.origin is not None else None
        route = self._match(was.host, was.raw_path, account)
        runner = route.runner if was.kind == "http" else route.upgrades
        if route.spec is None or was.route is None or not isinstance(runner, Pipeline):
            return ROUTE_GONE
        if was.kind != "http" and runner is route.runner:
            return Deny(403, "upgrade_unsupported", "a guard of its route cannot judge upgrades")
        if (route.spec.service, route.spec.account) != (was.route.service, was.route.account):
            return ROUTE_GONE
        again = was.again(route.spec)
        body = Downstream(entry.downstream.receive, entry.downstream.send, entry.downstream.connection)
        body.taken, body.exhausted = entry.downstream.taken, True
        refusal = await runner.revalidate(again, body)
        if isinstance(refusal, Challenge):
            return Deny(403, refusal.code, f"revalidation returned a challenge: {refusal.reason}")
        if refusal is None and was.identity is not None:
            now = again.identity
            if now is None or now.user_id != was.identity.user_id:
                return Deny(403, "identity_changed", "revalidation identified another caller, or none")
        return refusal
