"""How every exchange ends: its failure is answered if it still can be, and observers run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import structlog

from netbird_host.containment import GRACE, HungSteps, describe_error
from netbird_host.http_fields import retry_after
from netbird_proxy.api.errors import ClientGone, ExchangeError, ManagementError, StepFailed
from netbird_proxy.api.exchange import TrailEntry
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.api.model import Deny
from netbird_proxy.api.steps import Pages
from netbird_proxy.pipeline import core_answers as answers
from netbird_proxy.pipeline.bound import BoundObserver
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.exchange import Exchange

log = structlog.get_logger("netbird_proxy.pipeline")

GUARD_TIMEOUT = 5.0
"""Seconds that the guards of one exchange have, together."""

ENDPOINT_TIMEOUT = 30.0

CountEvent = Callable[[str], None]


class Runner(Protocol):
    """What a route runs: a pipeline, or a fixed answer where there is nothing to forward to."""

    async def run(self, exchange: Exchange, downstream: Downstream) -> None: ...


class Environment:
    """What all pipelines of a process share.

    Attributes:
        timeout: seconds that the guards of one exchange have, together.
        grace: seconds that a cancelled guard has to end before its exchange is answered without it.
        endpoint_timeout: seconds that an endpoint has until its answer begins.
        hung_steps: counts the tasks of steps that ignored their cancellation.
        count: adds one to a counter of the process.
        cookie_owner: cookie name → the plugin that declared it, "core", or "" for anybody's.
        pages: what makes the pages that browsers get; None leaves them with plain text.
    """

    def __init__(
        self,
        *,
        timeout: float = GUARD_TIMEOUT,
        grace: float = GRACE,
        endpoint_timeout: float = ENDPOINT_TIMEOUT,
        count: CountEvent = lambda _name: None,
    ) -> None:
        self.timeout = timeout
        self.grace = grace
        self.endpoint_timeout = endpoint_timeout
        self.count = count
        self.hung_steps = HungSteps()
        self.pages: Pages | None = None
        self.cookie_owner: Callable[[bytes], str] = lambda _name: ""

    def page_failed(self, error: BaseException) -> None:
        self.count("page_failed")
        log.warning("page.failed", error=describe_error(error))


class Ending:
    """How every exchange ends, whoever answered it: an error is answered if it still can be, and observers run."""

    __slots__ = ("environment", "observers")

    def __init__(self, observers: Sequence[BoundObserver], environment: Environment) -> None:
        self.observers = tuple(observers)
        self.environment = environment

    async def fail(self, exchange: Exchange, downstream: Downstream, error: ExchangeError) -> None:
        """Answer a failure, or close the stream when the answer has begun. Never raises but for cancellation."""
        exchange.error = error
        headers: list[RawHeader] = []
        if isinstance(error, StepFailed):
            exchange.trail.append(TrailEntry(error.stage, error.plugin, "failed", str(error)))
            self.environment.count("step_failed")
            log.warning(
                "exchange.step_failed", exchange=exchange.id, plugin=error.plugin, stage=error.stage, error=str(error)
            )
            if isinstance(error.__cause__, ManagementError):
                headers.append(retry_after(error.__cause__.retry_after))
        if isinstance(error, ClientGone):
            self.gone(exchange, downstream, error)
        elif downstream.started:
            if not downstream.complete:
                downstream.abort()
        else:
            try:
                await answers.fail(exchange, downstream, error, headers, self.environment)
            except Exception as exc:
                self.gone(exchange, downstream, ClientGone(f"{type(exc).__name__} while it was answered"))

    @staticmethod
    def gone(exchange: Exchange, downstream: Downstream, error: ClientGone) -> None:
        """Nobody reads an answer any more."""
        exchange.error = exchange.error or error
        exchange.status = exchange.status or error.status
        downstream.abort()

    def observe(self, exchange: Exchange) -> None:
        """Tell every observer, whatever the others do."""
        exchange.ended_ns = time.monotonic_ns()
        for bound in self.observers:
            try:
                said = bound.observe(exchange)
                if said is not None:
                    discard(said)
                    raise TypeError(f"an observer returned {type(said).__name__}")
            except BaseException as exc:  # it is plain code: nobody can have cancelled it
                self.environment.count("observer_failed")
                log.warning(
                    "exchange.observer_failed", exchange=exchange.id, plugin=bound.plugin, error=describe_error(exc)
                )


class FixedAnswer:
    """A route without steps and without upstream: it answers one thing, and is observed like any other.

    No route, a closed route, a path that could be read in two ways.
    """

    __slots__ = ("answer", "ending")

    def __init__(self, answer: Deny | ExchangeError, ending: Ending) -> None:
        self.answer = answer
        self.ending = ending

    async def run(self, exchange: Exchange, downstream: Downstream) -> None:
        await self.say(exchange, downstream, self.answer)

    async def server_options(self, exchange: Exchange, downstream: Downstream) -> None:
        """Answer `OPTIONS *`, then observe."""
        await self._observed(exchange, downstream, answers.server_options(exchange, downstream))

    async def say(self, exchange: Exchange, downstream: Downstream, answer: Deny | ExchangeError) -> None:
        """Answer, then observe; also when the client leaves meanwhile."""
        if isinstance(answer, Deny):
            exchange.denial = answer
            answering = answers.refuse(exchange, downstream, answer, self.ending.environment)
        else:
            answering = self.ending.fail(exchange, downstream, answer)
        await self._observed(exchange, downstream, answering)

    async def _observed(self, exchange: Exchange, downstream: Downstream, answering: Coroutine[Any, Any, None]) -> None:
        try:
            await answering
        except asyncio.CancelledError:
            self.ending.gone(exchange, downstream, ClientGone("it left while it was answered"))
            raise
        except Exception as exc:
            self.ending.gone(exchange, downstream, ClientGone(f"{type(exc).__name__} while it was answered"))
        finally:
            self.ending.observe(exchange)


def discard(said: object) -> None:
    """Close a coroutine that nobody awaited, so that it does not warn from the garbage collector."""
    if asyncio.iscoroutine(said):
        said.close()
