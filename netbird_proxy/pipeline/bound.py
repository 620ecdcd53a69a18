"""Steps bound to a route, each with its plugin and with the trail entry that it usually leaves."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from netbird_host.containment import describe_error, must_pass
from netbird_host.tables import IdentityCache
from netbird_proxy.api.errors import ProxyError
from netbird_proxy.api.exchange import OBSERVED, ExchangeView, TrailEntry
from netbird_proxy.api.headers import fold
from netbird_proxy.api.model import ALLOW, Challenge, Deny, Identity, Upstream
from netbird_proxy.api.outgoing_head import OutgoingHead
from netbird_proxy.api.response_head import ResponseHead
from netbird_proxy.api.steps import Authenticator, Guard, Observer, RequestTransform, ResponseTransform, Selector
from netbird_proxy.pipeline.exchange import Exchange

_STAMPED = 1024

GuardStage = Literal["restrict", "authenticate", "authorize"]


def awaitable(call: Callable[[ExchangeView], object]) -> Callable[[ExchangeView], Awaitable[object]]:
    """Return an `async def` step as it is; wrap another one, which reports what its author has to change."""
    if inspect.iscoroutinefunction(call):
        return call

    async def ask(exchange: ExchangeView) -> object:
        answer = call(exchange)
        if not isinstance(answer, Awaitable):
            raise TypeError(f"returned {type(answer).__name__} without waiting: write the step as `async def`")
        return await answer

    return ask


class BoundGuard:
    """A guard with its plugin and stage. `ask` may return any object; the admission checks it.

    Attributes:
        passes: the only result with which the exchange goes on to the next step.
        passed: the trail entry for that result.
    """

    __slots__ = ("again", "ask", "body_bytes", "observe", "passed", "passes", "plugin", "stage")

    def __init__(self, plugin: str, stage: GuardStage, guard: Guard) -> None:
        self.plugin = plugin
        self.stage = stage
        self.ask: Callable[[ExchangeView], Awaitable[object]] = awaitable(guard.check)
        self.observe = guard.observe
        self.again = guard.again
        self.body_bytes = guard.body_bytes
        self.passes: object = ALLOW
        self.passed = TrailEntry(stage, plugin, "allow")
        if guard.observe:
            self.ask = self._observed(self.ask)
            self.passed = TrailEntry(stage, plugin, "not enforced")

    def _observed(
        self, check: Callable[[ExchangeView], Awaitable[object]]
    ) -> Callable[[ExchangeView], Awaitable[object]]:
        """Wrap a guard that only observes: it always returns ALLOW, and records its verdict in the trail.

        The codes of its refusals also go into a note, for the logs. The deadline applies to it as to other guards.
        """

        async def ask(exchange: ExchangeView) -> object:
            code, allowed = "failed", False
            try:
                verdict = await check(exchange)
            except BaseException as exc:
                if must_pass(exc):
                    raise
                outcome, reason = "failed", describe_error(exc)
            else:
                allowed = verdict is ALLOW
                code = verdict.code if isinstance(verdict, Deny | Challenge) else "failed"
                outcome = f"deny {code}" if isinstance(verdict, Deny) else repr(verdict).lower()
                reason = verdict.reason if isinstance(verdict, Deny) else ""
            exchange.trail.append(TrailEntry(self.stage, self.plugin, f"observed {outcome}", reason))
            if isinstance(exchange, Exchange) and not allowed:
                earlier = exchange.notes.get(OBSERVED)
                refusal = f"{self.plugin}:{code}"
                exchange.notes[OBSERVED] = f"{earlier} {refusal}" if earlier else refusal
            return ALLOW

        return ask


class BoundAuthenticator:
    """An authenticator with its plugin. It passes the exchange on by returning None, to the next authenticator."""

    __slots__ = ("_stamped", "again", "ask", "body_bytes", "passed", "passes", "phase", "plugin", "stage")

    def __init__(self, plugin: str, authenticator: Authenticator) -> None:
        self.plugin = plugin
        self.stage: GuardStage = "authenticate"
        self.ask: Callable[[ExchangeView], Awaitable[object]] = awaitable(authenticator.identify)
        self.phase = authenticator.phase
        self.again = True  # an open exchange must keep its identity
        self.body_bytes = authenticator.body_bytes
        self.passes: object = None
        self.passed = TrailEntry("authenticate", plugin, "pass")
        self._stamped: IdentityCache[Identity, tuple[Identity, TrailEntry]] = IdentityCache(_STAMPED)

    def stamped(self, identity: Identity) -> tuple[Identity, TrailEntry]:
        """Return the identity with this plugin's name in `by`, and its trail entry. Cached for each object."""
        stamped = self._stamped.get(identity)
        if stamped is None:
            entry = TrailEntry("authenticate", self.plugin, "identity", identity.method)
            stamped = self._stamped.keep(identity, (identity.stamped(by=self.plugin), entry))
        return stamped


class BoundTransform:
    """A request transform with its plugin."""

    __slots__ = ("apply", "owns", "plugin")

    def __init__(self, plugin: str, transform: RequestTransform) -> None:
        self.plugin = plugin
        # Typed by what a plugin without a type checker may do: it may return a coroutine here.
        self.apply: Callable[[ExchangeView, OutgoingHead], object] = transform.apply
        self.owns = transform.owns


class BoundResponseTransform:
    """A response transform with its plugin.

    Attributes:
        names: the folded names that it owns.
    """

    __slots__ = ("apply", "names", "own_answers", "owns", "plugin")

    def __init__(self, plugin: str, transform: ResponseTransform) -> None:
        self.plugin = plugin
        self.apply: Callable[[ExchangeView, ResponseHead], object] = transform.apply
        self.owns = transform.owns
        self.names = frozenset(map(fold, transform.owns))
        self.own_answers = transform.own_answers


class BoundSelector:
    """A selector with its plugin. `pick` may return any object; `Selection` checks it."""

    __slots__ = ("outcome", "pick", "plugin")

    def __init__(self, plugin: str, selector: Selector) -> None:
        self.plugin = plugin
        self.pick: Callable[[ExchangeView, Sequence[Upstream], Sequence[Upstream]], object] = selector.pick
        self.outcome: Callable[[Upstream, ProxyError | None], object] | None = selector.outcome


class BoundObserver:
    """An observer with its plugin."""

    __slots__ = ("observe", "plugin")

    def __init__(self, plugin: str, observer: Observer) -> None:
        self.plugin = plugin
        self.observe: Callable[[ExchangeView], object] = observer
