"""The end of every exchange: a failure is answered if the answer has not started, and observers run."""

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
from netbird_proxy.pipeline.response_transforms import ResponseTransforms

log = structlog.get_logger("netbird_proxy.pipeline")

GUARD_TIMEOUT = 5.0
"""Maximum seconds for all guards of one exchange together."""

ENDPOINT_TIMEOUT = 30.0

CountEvent = Callable[[str], None]


class Runner(Protocol):
    """Runs the exchanges of a route: a pipeline, or a fixed answer if nothing is to be forwarded."""

    async def run(self, exchange: Exchange, downstream: Downstream) -> None: ...


class Environment:
    """Settings and counters that all pipelines of a process share.

    Attributes:
        timeout: maximum seconds for all guards of one exchange together; on expiry 503.
        grace: seconds that a cancelled guard has to end. After them its exchange is answered without it.
        endpoint_timeout: maximum seconds until an endpoint starts its answer; on expiry 503.
        hung_steps: counts the tasks of steps that ignored their cancellation.
        count: adds one to a counter of the process.
        cookie_owner: cookie name → the plugin that declared it, "core", or "" for a cookie of an upstream.
        pages: renders the pages for browsers; with None browsers get plain text.
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
    """Ends the exchanges of one route: answers a failure if the answer has not started, and runs the observers.

    Attributes:
        transforms: the response transforms of the route; None without any.
    """

    __slots__ = ("environment", "observers", "transforms")

    def __init__(
        self,
        observers: Sequence[BoundObserver],
        environment: Environment,
        transforms: ResponseTransforms | None = None,
    ) -> None:
        self.observers = tuple(observers)
        self.environment = environment
        self.transforms = transforms

    async def fail(self, exchange: Exchange, downstream: Downstream, error: ExchangeError) -> None:
        """Answer a failure, or close the stream if the answer has started. Raises nothing but CancelledError."""
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
        """Record that the client has left, and close its connection."""
        exchange.error = exchange.error or error
        exchange.status = exchange.status or error.status
        downstream.abort()

    def observe(self, exchange: Exchange) -> None:
        """Call every observer. A failure of one does not affect the others."""
        exchange.ended_ns = time.monotonic_ns()
        for bound in self.observers:
            try:
                result = bound.observe(exchange)
                if result is not None:
                    discard(result)
                    raise TypeError(f"an observer returned {type(result).__name__}")
            except BaseException as exc:  # synchronous code: no cancellation can arrive here
                self.environment.count("observer_failed")
                log.warning(
                    "exchange.observer_failed", exchange=exchange.id, plugin=bound.plugin, error=describe_error(exc)
                )


class FixedAnswer:
    """Gives every exchange the same answer, without steps and without an upstream. Observers run as for others.

    Used where no route matches, for a closed route, and for a path that can be read in two ways.
    """

    __slots__ = ("answer", "ending")

    def __init__(self, answer: Deny | ExchangeError, ending: Ending) -> None:
        self.answer = answer
        self.ending = ending

    async def run(self, exchange: Exchange, downstream: Downstream) -> None:
        await self.send(exchange, downstream, self.answer)

    async def server_options(self, exchange: Exchange, downstream: Downstream) -> None:
        """Answer `OPTIONS *`, then call the observers."""
        await self._observed(exchange, downstream, answers.server_options(exchange, downstream))

    async def send(self, exchange: Exchange, downstream: Downstream, answer: Deny | ExchangeError) -> None:
        """Send the answer, then call the observers, also if the client leaves meanwhile."""
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


def discard(result: object) -> None:
    """Close a coroutine that will not be awaited, so that Python does not warn about it."""
    if asyncio.iscoroutine(result):
        result.close()
