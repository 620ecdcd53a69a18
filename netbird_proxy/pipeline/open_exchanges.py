"""The exchanges under way: asked about again when something changed, and cut when they may not go on."""

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
"""Seconds after which every guarded exchange is asked about again, where no event told of a change."""
AT_ONCE = 1024
"""Exchanges that are asked about at a time: each may cost a call to management."""

ROUTE_GONE = Deny(503, "route_gone", "its route is not served any more")
NOT_REVALIDATED = Deny(503, "not_readmitted", "it could not be asked about again in time")


class Matched(Protocol):
    """The route that serves a host and path now."""

    @property
    def spec(self) -> RouteSpec | None: ...

    @property
    def runner(self) -> Runner: ...

    @property
    def upgrades(self) -> Runner: ...


Match = Callable[[str, bytes, AccountId | None], Matched]
"""Folded host, raw path, and the account in whose tunnel the exchange came in."""


class OpenExchange:
    """An exchange with its task.

    Attributes:
        due: time of the loop by which it must have been asked about, or is cut; None while nobody wants to.
        late: the timer that cuts it then.
        verdict: the task that asks about it now.
        again: where something changed since that task began, the time by which it must be asked about once more.
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
        """Whether it has ended for its client, although its task may still hang in a step."""
        return self.downstream.cut is not None or self.exchange.ended_ns != 0

    def cut(self, refusal: Deny) -> None:
        """End it now: its task is cancelled, which resets its upstream and closes or answers its client."""
        if self.downstream.cut is None:
            self.downstream.cut = refusal
            self.task.cancel()

    def stop_timer(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None


class OpenExchanges:
    """Implements `steps.OpenExchanges`. Nothing is asked before `run` runs; it then catches up."""

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
        timeout: seconds that the guards of one exchange have, together; after an event also the bound for all that
            wait for a place. What the clock asks about waits for an interval at most.
        hung_steps: counts verdicts that ignored their cancellation for `grace` seconds, and still hang.
        before_all: called each time that everybody is about to be asked about by the clock.
        """
        self._match = match
        self._timeout = timeout
        self._before_all = before_all
        self._interval = interval
        self._open: set[OpenExchange] = set()
        self._hung_steps = hung_steps or HungSteps()
        self._grace = grace
        self._wanted: dict[OpenExchange, None] = {}
        self._waiting: deque[OpenExchange] = deque()
        self._asked: set[OpenExchange] = set()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, exchange: Exchange, downstream: Downstream) -> OpenExchange:
        """An exchange begins, in the calling task."""
        # Our own listener knows its task; to ask for the current one is a system call on 3.11.
        connection = downstream.connection
        task = asyncio.current_task() if connection is None else connection.task
        assert task is not None, "the application runs in a task"  # noqa: S101 - narrows; asyncio promises it
        one = OpenExchange(exchange, downstream, task)
        self._open.add(one)
        return one

    def leave(self, one: OpenExchange) -> None:
        self._open.discard(one)
        self._wanted.pop(one, None)
        one.stop_timer()

    def revalidate(
        self,
        *,
        account: AccountId | None = None,
        user: UserId | None = None,
        peer: PublicKey | None = None,
        service: ServiceId | None = None,
    ) -> int:
        """Ask about those that match all that is given. Who is not known yet matches any user and peer."""
        return self._want(
            one
            for one in self._open
            if (route := one.exchange.route) is not None
            and (account is None or route.account == account)
            and (service is None or route.service == service)
            and ((who := one.exchange.identity) is None or user is None or who.user_id == user)
            and (who is None or peer is None or who.attributes.get("peer_key") in (None, peer))
        )

    def changed(self, services: frozenset[ServiceId]) -> None:
        """These services' routes are others now, or gone."""
        self._want(
            one for one in self._open if one.exchange.route is not None and one.exchange.route.service in services
        )

    def _want(self, found: Iterable[OpenExchange]) -> int:
        wanted = dict.fromkeys(found)
        self._wanted.update(wanted)
        if wanted:
            self._wake.set()
        return len(wanted)

    async def run(self) -> None:
        """Ask, until cancelled: whenever something is wanted, and about everybody after each interval."""
        clock = asyncio.get_running_loop().time
        due = clock() + self._interval
        try:
            while True:
                bound = self._timeout
                try:
                    # By a deadline, as changes that keep waking us must not put it off.
                    async with asyncio.timeout_at(due):
                        await self._wake.wait()
                except TimeoutError:
                    due = clock() + self._interval
                    self._before_all()
                    if not self._wanted:
                        bound = max(bound, self._interval)
                    self._want(entry for entry in self._open if entry.exchange.route is not None)
                self._wake.clear()
                wanted, self._wanted = self._wanted, {}
                for entry in wanted:
                    self._enqueue(entry, bound)
        finally:
            # Nobody waits for verdicts: one that ignores its cancellation would hold up the end of the process.
            self._waiting.clear()
            for entry in self._open:
                entry.stop_timer()
            for entry in tuple(self._asked):
                self._release(entry)

    def _enqueue(self, entry: OpenExchange, bound: float) -> None:
        """Have it asked about within `bound` seconds, or cut: the time until it gets a place counts."""
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
        """Give free places to those who wait."""
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
        """Cut it by the clock, whatever its steps do: one that hangs must not hold the door open, nor its place."""
        self._cut(entry, NOT_REVALIDATED)
        self._release(entry)

    def _release(self, entry: OpenExchange) -> None:
        """Give its place to the next, and end its verdict, or leave that behind."""
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
        """Ask about one, and cut it unless it may go on. Whatever fails, fails closed."""
        refusal: Deny | None
        try:
            refusal = await self._verdict(entry)
        except BaseException as exc:
            if must_pass(exc):
                raise  # it is late, or the process stops
            refusal = Deny(503, "step_failed", f"asked again: {describe_error(exc)}")
        if entry.verdict is not asyncio.current_task():
            return  # it was too late, and has been cut
        if refusal is not None:
            self._cut(entry, refusal)
        again, entry.again, entry.verdict = entry.again, None, None
        self._release(entry)
        if again is not None:
            self._enqueue(entry, max(0.0, again - asyncio.get_running_loop().time()))

    async def _verdict(self, one: OpenExchange) -> Deny | None:
        was = one.exchange
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
        body = Downstream(one.downstream.receive, one.downstream.send, one.downstream.connection)
        body.taken, body.exhausted = one.downstream.taken, True
        refusal = await runner.revalidate(again, body)
        if isinstance(refusal, Challenge):
            return Deny(403, refusal.code, f"asked again, it was challenged: {refusal.reason}")
        if refusal is None and was.identity is not None:
            now = again.identity
            if now is None or now.user_id != was.identity.user_id:
                return Deny(403, "identity_changed", "asked again, somebody else was known, or nobody")
        return refusal
