"""Plugins' transforms of response heads: of an upstream's answers, and of the proxy's own."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import structlog

from netbird_host.containment import describe_error
from netbird_proxy.api.errors import StepFailed
from netbird_proxy.api.exchange import TrailEntry
from netbird_proxy.api.headers import RawHeader, fold
from netbird_proxy.api.response_head import ResponseHead
from netbird_proxy.pipeline.bound import BoundResponseTransform
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.head_rules import HeadRules, cookie_name

log = structlog.get_logger("netbird_proxy.pipeline")

STAGE = "transform_response"

_NOTHING: frozenset[bytes] = frozenset()
_CONTENT_TYPE = b"content-type"
# Names that no plugin adds to answers of the proxy or of an endpoint: a cache would keep a login (also by fields that
# only caches in front of the proxy read), or a browser would leave for another place, or ask for a password.
_NEVER_ADDED = frozenset((b"location", b"refresh", b"www-authenticate"))
_NEVER_ADDED_ENDINGS = (b"cache-control", b"surrogate-control", b"expires")


class Limits(Protocol):
    """The part of the process's environment that transforms need. See `ending.Environment`."""

    @property
    def timeout(self) -> float: ...

    @property
    def count(self) -> Callable[[str], None]: ...


class ResponseTransforms:
    """The response transforms of one route, in their order.

    Attributes:
        names: folded names that a plugin owns. Heads and trailers that no transform sees lose them.
    """

    __slots__ = ("_all", "_limits", "_never_added", "_of_own_answers", "_rules", "names")

    def __init__(self, transforms: Sequence[BoundResponseTransform], rules: HeadRules, limits: Limits) -> None:
        self._all = tuple(transforms)
        self._of_own_answers = tuple(transform for transform in transforms if transform.own_answers)
        self._rules = rules
        self._limits = limits
        self.names = _NOTHING.union(*(transform.names for transform in transforms))
        self._never_added = frozenset(
            name for name in self.names if name in _NEVER_ADDED or name.endswith(_NEVER_ADDED_ENDINGS)
        )

    def change(self, exchange: Exchange, status: int, fields: list[RawHeader]) -> None:
        """Change the fields of an upstream's answer, in place, as far as plugins own them.

        Raises:
            StepFailed: a transform raised, returned a value, or took too long. Nothing of the head may be sent.
        """
        self._run(self._all, exchange, status, fields, None)

    def extended(self, exchange: Exchange, status: int, fields: list[RawHeader]) -> list[RawHeader]:
        """Return the fields of an answer of the proxy or of an endpoint, with the lines that plugins add to them.

        If a transform fails, now or before in this exchange, the fields are returned unchanged. Plugins see neither the
        lines of the answer, which may hold secrets, nor those of the request that an endpoint alone may see.
        """
        if not self._of_own_answers or _has_failed(exchange):
            return fields
        visible = [pair for pair in fields if fold(pair[0]) == _CONTENT_TYPE]
        added = list(visible)
        headers, query = exchange.headers, exchange.query
        keeps = self._never_added.union(fold(name) for name, _ in fields)
        exchange.hide()
        try:
            self._run(self._of_own_answers, exchange, status, added, keeps)
        except StepFailed as failure:
            exchange.trail.append(TrailEntry(STAGE, failure.plugin, "failed", str(failure)))
            self._limits.count("step_failed")
            log.warning(
                "exchange.step_failed", exchange=exchange.id, plugin=failure.plugin, stage=STAGE, error=str(failure)
            )
            return fields
        finally:
            exchange.headers, exchange.query = headers, query
        return fields + added[len(visible) :]

    def _run(
        self,
        transforms: Sequence[BoundResponseTransform],
        exchange: Exchange,
        status: int,
        fields: list[RawHeader],
        keeps: frozenset[bytes] | None,
    ) -> None:
        began, timeout = time.monotonic(), self._limits.timeout
        for transform in transforms:
            plugin = transform.plugin
            head = ResponseHead(
                status,
                fields,
                owns=transform.names,
                plugin=plugin,
                own_answer=keeps is not None,
                keeps=keeps or _NOTHING,
                may_set=partial(self._may_set, plugin),
            )
            try:
                result = transform.apply(exchange, head)
            except BaseException as exc:  # synchronous code: no cancellation can arrive here
                raise StepFailed(plugin, STAGE, describe_error(exc)) from exc
            finally:
                head.seal()
            if result is not None:
                if inspect.iscoroutine(result):
                    result.close()  # it would warn that it was never awaited
                raise StepFailed(plugin, STAGE, f"returned {type(result).__name__}")
            if time.monotonic() - began > timeout:
                raise StepFailed(plugin, STAGE, f"returned after more than {timeout:g} s")

    def _may_set(self, plugin: str, cookie: bytes) -> bool:
        """Return False for a `Set-Cookie` value that sets a cookie of the core or of another plugin."""
        return self._rules.ours[cookie_name(cookie)] in ("", plugin)


def _has_failed(exchange: Exchange) -> bool:
    return isinstance(exchange.error, StepFailed) and exchange.error.stage == STAGE
