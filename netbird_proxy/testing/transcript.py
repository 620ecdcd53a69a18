"""Transcripts: a test states the complete, ordered list of an exchange's effects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from netbird_proxy.api.endpoints import Endpoint
from netbird_proxy.api.errors import UpstreamError
from netbird_proxy.api.exchange import ExchangeView
from netbird_proxy.api.host import Proxy
from netbird_proxy.api.model import Challenge, Deny, Identity, Offer, Origin, RouteSpec, ServiceMapping, Upstream
from netbird_proxy.api.outgoing_head import OutgoingHead
from netbird_proxy.api.response_head import ResponseHead
from netbird_proxy.api.steps import (
    Authenticator,
    Guard,
    Observer,
    Pages,
    RequestTransform,
    ResponseTransform,
    Selector,
)
from netbird_proxy.api.tunnels import Dialer
from netbird_proxy.app import ReverseProxy
from netbird_proxy.pipeline.bound import awaitable
from netbird_proxy.pipeline.ending import GUARD_TIMEOUT, Environment
from netbird_proxy.routing.apply import Report, Routing
from netbird_proxy.routing.compile import Compiler, RouteHooks
from netbird_proxy.testing.asgi import Answer, Client
from netbird_proxy.testing.fakes import FakeProxy, HostDialer
from netbird_proxy.testing.makers import mapping
from netbird_proxy.testing.upstreams import ScriptedAnswer, Upstreams
from netbird_proxy.upstreams.pools import Pools

GuardHook = Callable[[RouteSpec, Proxy], Guard | None]


class StepHooks:
    """Hooks without plugins: the steps of a test by stage, each as `(plugin id, step)`, on every route."""

    def __init__(
        self,
        *,
        restrict: Sequence[tuple[str, Guard]] = (),
        authenticate: Sequence[tuple[str, Authenticator]] = (),
        authorize: Sequence[tuple[str, Guard]] = (),
        transform_request: Sequence[tuple[str, RequestTransform]] = (),
        transform_response: Sequence[tuple[str, ResponseTransform]] = (),
        observe: Sequence[tuple[str, Observer]] = (),
        select: tuple[str, Selector] | None = None,
        dialer: tuple[str, Dialer] | None = ("host", HostDialer()),
        endpoint: Sequence[tuple[str, Endpoint]] = (),
        pages: Pages | None = None,
    ) -> None:
        self.steps: dict[str, Sequence[tuple[str, Any]]] = {
            "restrict": restrict,
            "authenticate": authenticate,
            "authorize": authorize,
            "transform_request": transform_request,
            "transform_response": transform_response,
            "observe": observe,
            "endpoint": endpoint,
        }
        self.the_selector = select
        self.the_dialer = dialer
        self.the_pages = pages

    def restrict(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, Guard]]:
        return self.steps["restrict"]

    def authenticate(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, Authenticator]]:
        return self.steps["authenticate"]

    def authorize(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, Guard]]:
        return self.steps["authorize"]

    def transform_request(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, RequestTransform]]:
        return self.steps["transform_request"]

    def transform_response(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, ResponseTransform]]:
        return self.steps["transform_response"]

    def select(self, route: RouteSpec, proxy: Proxy) -> tuple[str, Selector] | None:
        return self.the_selector

    def observe(self, route: RouteSpec | None, proxy: Proxy) -> Sequence[tuple[str, Observer]]:
        return self.steps["observe"]

    def dialer(self, route: RouteSpec, upstream: Upstream, proxy: Proxy) -> tuple[str, Dialer] | None:
        return self.the_dialer

    def endpoint(self, host: ServiceMapping, proxy: Proxy) -> Sequence[tuple[str, Endpoint]]:
        return self.steps["endpoint"]

    def pages(self, proxy: Proxy) -> tuple[str, Pages] | None:
        return None if self.the_pages is None else ("test", self.the_pages)


class RecordedHooks:
    """Hooks whose steps record their answers in a transcript."""

    def __init__(self, hooks: RouteHooks, record: Callable[[str], None]) -> None:
        self._hooks = hooks
        self._record = record

    def restrict(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, Guard]]:
        return [(name, self._guard("restrict", name, step)) for name, step in self._hooks.restrict(route, proxy)]

    def authenticate(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, Authenticator]]:
        return [
            (name, replace(step, identify=self._step("authenticate", name, step.identify)))
            for name, step in self._hooks.authenticate(route, proxy)
        ]

    def authorize(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, Guard]]:
        return [(name, self._guard("authorize", name, step)) for name, step in self._hooks.authorize(route, proxy)]

    def transform_request(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, RequestTransform]]:
        return [(name, self._transform(name, step)) for name, step in self._hooks.transform_request(route, proxy)]

    def transform_response(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, ResponseTransform]]:
        return [
            (name, replace(step, apply=_RecordedTransform(self._record, "transform_response", name, step.apply)))
            for name, step in self._hooks.transform_response(route, proxy)
        ]

    def select(self, route: RouteSpec, proxy: Proxy) -> tuple[str, Selector] | None:
        if (offered := self._hooks.select(route, proxy)) is None:
            return None
        plugin, step = offered
        return plugin, replace(step, pick=_RecordedPick(self._record, plugin, step.pick))

    def observe(self, route: RouteSpec | None, proxy: Proxy) -> Sequence[tuple[str, Observer]]:
        return self._hooks.observe(route, proxy)

    def dialer(self, route: RouteSpec, upstream: Upstream, proxy: Proxy) -> tuple[str, Dialer] | None:
        return self._hooks.dialer(route, upstream, proxy)

    def endpoint(self, host: ServiceMapping, proxy: Proxy) -> Sequence[tuple[str, Endpoint]]:
        return self._hooks.endpoint(host, proxy)

    def pages(self, proxy: Proxy) -> tuple[str, Pages] | None:
        return self._hooks.pages(proxy)

    def _guard(self, stage: str, plugin: str, guard: Guard) -> Guard:
        return replace(guard, check=self._step(stage, plugin, guard.check))

    def _step(self, stage: str, plugin: str, ask: Callable[[ExchangeView], Awaitable[Any]]) -> Callable[..., Any]:
        return _RecordedStep(self._record, stage, plugin, awaitable(ask))

    def _transform(self, plugin: str, step: RequestTransform) -> RequestTransform:
        return replace(step, apply=_RecordedTransform(self._record, "transform_request", plugin, step.apply))


@dataclass(frozen=True)
class _RecordedStep:
    """A step that records its answer. Two of them are equal if the steps that they record are."""

    record: Callable[[str], None]
    stage: str
    plugin: str
    step: Callable[[ExchangeView], Awaitable[Any]]

    def __call__(self, exchange: ExchangeView) -> Any:
        try:
            answer: object = self.step(exchange)
        except BaseException as exc:
            self.record(f"{self.stage} {self.plugin}: raised {type(exc).__name__}")
            raise
        # A step that is not `async` returns what cannot be awaited; the pipeline reports that, as without a transcript.
        return self._recorded(answer) if isinstance(answer, Awaitable) else answer

    async def _recorded(self, awaitable: Awaitable[Any]) -> Any:
        try:
            answer = await awaitable
        except BaseException as exc:
            self.record(f"{self.stage} {self.plugin}: raised {type(exc).__name__}")
            raise
        self.record(f"{self.stage} {self.plugin}: {_worded(answer)}")
        return answer


@dataclass(frozen=True)
class _RecordedTransform:
    """A transform that records its call."""

    record: Callable[[str], None]
    stage: str
    plugin: str
    step: Callable[[ExchangeView, Any], None]

    def __call__(self, exchange: ExchangeView, head: OutgoingHead | ResponseHead) -> None:
        self.record(f"{self.stage} {self.plugin}")
        return self.step(exchange, head)


@dataclass(frozen=True)
class _RecordedPick:
    """A selector's `pick` that records its call."""

    record: Callable[[str], None]
    plugin: str
    step: Callable[[ExchangeView, Sequence[Upstream], Sequence[Upstream]], Upstream]

    def __call__(self, exchange: ExchangeView, candidates: Sequence[Upstream], tried: Sequence[Upstream]) -> Upstream:
        self.record(f"select {self.plugin}")
        return self.step(exchange, candidates, tried)


def _worded(answer: object) -> str:
    if isinstance(answer, Deny):
        return f"deny {answer.code}"
    if isinstance(answer, Challenge):
        return f"challenge {answer.code}"
    if isinstance(answer, Offer | tuple):
        return "offer " + ", ".join(offer.method for offer in (answer if isinstance(answer, tuple) else (answer,)))
    if isinstance(answer, Identity):
        return f"identity {answer.user_id}"
    return "pass" if answer is None else repr(answer).lower()


class Transcript:
    """The whole proxy without its sockets: mappings, hooks, a scripted upstream, and a list of effects.

    Effects: `restrict PLUGIN: allow`, `authenticate PLUGIN: pass` or `identity USER`, `… : deny CODE`,
    `select PLUGIN`, `transform_request PLUGIN`, `dial UPSTREAM`, `transform_response PLUGIN`, `abort`,
    `respond STATUS`, `observe STATUS [CODE]`.

    Attributes:
        reports: the results of applying the mappings.
        observed: the exchanges that observers received.
    """

    def __init__(
        self,
        *mappings: ServiceMapping | RouteSpec,
        hooks: RouteHooks | None = None,
        proxy: Proxy | None = None,
        upstream: Iterable[ScriptedAnswer | UpstreamError] = (),
        reused: bool = False,
        timeout: float = GUARD_TIMEOUT,
        cookies: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
        foreign_origins: bool = False,
        **proxy_options: Any,
    ) -> None:
        self.effects: list[str] = []
        self.observed: list[ExchangeView] = []
        self.upstreams = Upstreams(upstream, reused=reused, record=self.effects.append)
        self.proxy = proxy or FakeProxy()
        self.environment = Environment(timeout=timeout, count=self.proxy.count)
        self.compiler = Compiler(
            RecordedHooks(hooks or StepHooks(), self.effects.append),
            self.proxy,
            Pools(self.upstreams, grace=0.0),
            self.environment,
            pseudonym="netbird-proxy",
            cookies=cookies,
            observers=[("transcript", self._observe)],
        )
        self.routing = Routing(self.compiler)
        self.app = ReverseProxy(
            self.routing, recognizes=lambda _origin: not foreign_origins, notes=tuple(notes), **proxy_options
        )
        made = [mapping(item) if isinstance(item, RouteSpec) else item for item in mappings]
        self.reports: list[Report] = self.routing.apply("management", made)

    async def request(
        self, method: str = "GET", target: str = "/", *, origin: Origin | None = None, **fields: Any
    ) -> Answer:
        """Run a request, from its head to its observers."""
        return await self.run(Client(method, target, origin=origin, **fields))

    async def run(self, client: Client) -> Answer:
        """Run a client that the test made itself."""
        seen = len(self.observed)
        try:
            return await client.ask(self.app)
        finally:
            # The answer is sent before observers run, so its effect is inserted before theirs.
            if client.answer.status:
                at = next(
                    (i for i, effect in enumerate(self.effects) if effect.startswith("observe")), len(self.effects)
                )
                self.effects.insert(
                    at if len(self.observed) > seen else len(self.effects), f"respond {client.answer.status}"
                )

    def saw(self, *effects: str) -> None:
        """State all effects since the last call, in order. Any other effect fails the test."""
        happened, self.effects[:] = list(self.effects), []
        assert happened == list(effects), _difference(happened, effects)

    @property
    def exchange(self) -> ExchangeView:
        """The last observed exchange."""
        return self.observed[-1]

    def finish(self) -> None:
        """Fail the test if there are effects that no `saw` has stated."""
        assert not self.effects, f"effects that the test did not state: {self.effects}"

    def _observe(self, exchange: ExchangeView) -> None:
        self.observed.append(exchange)
        code = exchange.denial.code if exchange.denial else exchange.error.code if exchange.error else ""
        self.effects.append(f"observe {exchange.status} {code}".rstrip())


def _difference(happened: Sequence[str], stated: Sequence[str]) -> str:
    import difflib

    return "\n" + "\n".join(difflib.ndiff(list(stated), list(happened)))
