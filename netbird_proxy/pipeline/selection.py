"""Selection among the upstreams of a route: a plugin picks the upstream of each try, and gets its outcome."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from netbird_host.containment import describe_error
from netbird_proxy.api.errors import ProxyError, StepFailed
from netbird_proxy.api.exchange import TrailEntry
from netbird_proxy.api.model import Upstream
from netbird_proxy.pipeline.bound import BoundSelector
from netbird_proxy.pipeline.ending import discard
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.response_transforms import Limits

log = structlog.get_logger("netbird_proxy.pipeline")

STAGE = "select"


class Selection:
    """The selector of one route. Upstreams are numbered in the order of the route.

    Only an upstream of the route that this exchange has not tried yet is accepted; a failing selector ends the exchange
    and is never replaced by a choice of the core's own, because it may have reasons to avoid an upstream.
    """

    __slots__ = ("_limits", "_selector", "_upstreams")

    def __init__(self, selector: BoundSelector, upstreams: Sequence[Upstream], limits: Limits) -> None:
        self._selector = selector
        self._upstreams = tuple(upstreams)
        self._limits = limits

    def pick(self, exchange: Exchange, tried: Sequence[int]) -> int:
        """Return the number of the upstream to try next.

        Raises:
            StepFailed: the selector raised, took too long, or returned something other than a candidate.
        """
        selector, upstreams = self._selector, self._upstreams
        candidates = {number: upstream for number, upstream in enumerate(upstreams) if number not in tried}
        offered, before = tuple(candidates.values()), tuple(upstreams[number] for number in tried)
        began = time.monotonic()
        headers = exchange.headers
        if exchange.views:
            exchange.show(selector.plugin)
        try:
            picked = selector.pick(exchange, offered, before)
        except BaseException as exc:  # synchronous code: no cancellation can arrive here
            raise StepFailed(selector.plugin, STAGE, describe_error(exc)) from exc
        finally:
            exchange.headers = headers
        number = next((number for number, upstream in candidates.items() if upstream is picked), -1)
        if number < 0:
            discard(picked)
            raise StepFailed(selector.plugin, STAGE, f"returned {type(picked).__name__}, which is not a candidate")
        if time.monotonic() - began > self._limits.timeout:
            failed = StepFailed(selector.plugin, STAGE, f"returned after more than {self._limits.timeout:g} s")
            self.report(exchange, number, failed)
            raise failed
        exchange.trail.append(TrailEntry(STAGE, selector.plugin, "pick", str(upstreams[number])))
        return number

    def report(self, exchange: Exchange, number: int, error: ProxyError | None) -> None:
        """Give the outcome of a try to the selector. Never raises: a failure is logged, and changes nothing."""
        selector = self._selector
        if selector.outcome is None:
            return
        try:
            result = selector.outcome(self._upstreams[number], error)
        except BaseException as exc:  # synchronous code: no cancellation can arrive here
            problem = describe_error(exc)
        else:
            if result is None:
                return
            discard(result)
            problem = f"outcome returned {type(result).__name__}"
        exchange.trail.append(TrailEntry(STAGE, selector.plugin, "failed", problem))
        self._limits.count("step_failed")
        log.warning("exchange.step_failed", exchange=exchange.id, plugin=selector.plugin, stage=STAGE, error=problem)
