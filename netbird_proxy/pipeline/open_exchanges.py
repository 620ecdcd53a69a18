"""The exchanges under way: asked about again when something changed, and cut when they may not go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from netbird_proxy.api.exchange import TrailEntry
from netbird_proxy.api.model import AccountId, Challenge, Deny, PublicKey, RouteSpec, ServiceId, UserId
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.pipeline import Pipeline, Runner

log = structlog.get_logger("netbird_proxy.exchanges")

INTERVAL = 60.0
"""Seconds after which every guarded exchange is asked about again, where no event told of a change."""
AT_ONCE = 64
"""So many are asked about at a time: each may cost a call to management."""

ROUTE_GONE = Deny(503, "route_gone", "its route is not served any more")
NOT_ASKED = Deny(503, "not_readmitted", "it could not be asked about again in time")


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


class UnderWay:
    """One exchange with its task."""

    __slots__ = ("asking", "downstream", "exchange", "task")

    def __init__(self, exchange: Exchange, downstream: Downstream, task: asyncio.Task[None]) -> None:
        self.exchange = exchange
        self.downstream = downstream
        self.task = task
        self.asking = False

    def cut(self, refusal: Deny) -> None:
        """End it now: its task is cancelled, which resets its upstream and closes or answers its client."""
        if self.downstream.cut is None:
            self.downstream.cut = refusal
            self.task.cancel()


class OpenExchanges:
    """Implements `steps.OpenExchanges`. Nothing is asked before `run` runs; it then catches up."""

    def __init__(
        self,
        match: Match,
        *,
        timeout: float,
        interval: float = INTERVAL,
        before_all: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        match: finds the route that serves an open exchange now.
        timeout: seconds that the guards of one exchange have, together.
        before_all: called each time that everybody is about to be asked about by the clock.
        """
        self._match = match
        self._timeout = timeout
        self._before_all = before_all
        self._interval = interval
        self._open: set[UnderWay] = set()
        self._wanted: dict[UnderWay, None] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, exchange: Exchange, downstream: Downstream) -> UnderWay:
        """An exchange begins, in the calling task."""
        # Our own listener knows its task; to ask for the current one is a system call on 3.11.
        connection = downstream.connection
        task = asyncio.current_task() if connection is None else connection.task
        assert task is not None, "the application runs in a task"  # noqa: S101 - narrows; asyncio promises it
        one = UnderWay(exchange, downstream, task)
        self._open.add(one)
        return one

    def leave(self, one: UnderWay) -> None:
        self._open.discard(one)
        self._wanted.pop(one, None)

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

    def _want(self, found: Iterable[UnderWay]) -> int:
        wanted = dict.fromkeys(found)
        self._wanted.update(wanted)
        if wanted:
            self._wake.set()
        return len(wanted)

    async def run(self) -> None:
        """Ask, until cancelled: whenever something is wanted, and about everybody after each interval."""
        places = asyncio.Semaphore(AT_ONCE)
        clock = asyncio.get_running_loop().time
        due = clock() + self._interval
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    # By a deadline, as changes that keep waking us must not put it off.
                    async with asyncio.timeout_at(due):
                        await self._wake.wait()
                except TimeoutError:
                    due = clock() + self._interval
                    self._before_all()
                    self._want(one for one in self._open if one.exchange.route is not None)
                self._wake.clear()
                wanted, self._wanted = self._wanted, {}
                for one in wanted:
                    if one in self._open:
                        group.create_task(self._ask(one, places))

    async def _ask(self, one: UnderWay, places: asyncio.Semaphore) -> None:
        """Ask about one, and cut it unless it may go on. Whatever fails, fails closed."""
        loop = asyncio.get_running_loop()
        timeout = self._timeout
        async with places:
            if one not in self._open:
                return
            # By the clock, whatever the step does: a hanging one must not hold the door open.
            late = loop.call_later(timeout, one.cut, NOT_ASKED)
            try:
                async with asyncio.timeout(timeout):
                    refusal = await self._verdict(one)
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise  # the process stops
                refusal = Deny(503, "step_failed", "asked again, a step raised CancelledError")
            except Exception as exc:
                refusal = Deny(503, "step_failed", f"asked again: {type(exc).__name__}: {exc}")
            finally:
                late.cancel()
            if refusal is not None and one in self._open:
                one.exchange.trail.append(TrailEntry("revalidate", "core", f"cut {refusal.code}", refusal.reason))
                log.info("exchange.cut", exchange=one.exchange.id, code=refusal.code, reason=refusal.reason)
                one.cut(refusal)

    async def _verdict(self, one: UnderWay) -> Deny | None:
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
        again = Exchange(
            id=was.id,
            origin=was.origin,
            method=was.method,
            scheme=was.scheme,
            host=was.host,
            authority=was.authority,
            raw_path=was.raw_path,
            query=was.query,
            http_version=was.http_version,
            headers=was.headers,
            client_address=was.client_address,
            allowed_notes=was.allowed_notes,
            kind=was.kind,
            asked_again=True,
        )
        again.route = route.spec
        again.forwarded = was.forwarded
        body = Downstream(one.downstream.receive, one.downstream.send, one.downstream.connection)
        body.taken, body.exhausted = one.downstream.taken, True
        refusal = await runner.readmit(again, body)
        if isinstance(refusal, Challenge):
            return Deny(403, refusal.code, f"asked again, it was challenged: {refusal.reason}")
        if refusal is None and was.identity is not None:
            now = again.identity
            if now is None or now.user_id != was.identity.user_id:
                return Deny(403, "identity_changed", "asked again, somebody else was known, or nobody")
        return refusal
