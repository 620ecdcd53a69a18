"""From a mapping to its routes. Hooks are called here, once, and the steps that they return run on each exchange.

A mapping that cannot be compiled is refused as a whole. If a guarding field is set, the plugin that claims it must
enforce it, or the mapping is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from netbird_host.http_fields import TOKEN
from netbird_proxy.api.addresses import AddressJudge, AddressRules
from netbird_proxy.api.endpoints import Endpoint
from netbird_proxy.api.errors import PluginFailed, RouteClosed, RouteRefused
from netbird_proxy.api.headers import fold
from netbird_proxy.api.host import Proxy
from netbird_proxy.api.model import OWN_PATHS, Address, Kind, RouteSpec, ServiceMapping, Upstream
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
from netbird_proxy.pipeline.bound import (
    BoundAuthenticator,
    BoundGuard,
    BoundObserver,
    BoundResponseTransform,
    BoundSelector,
    BoundTransform,
    GuardStage,
)
from netbird_proxy.pipeline.core_answers import AMBIGUOUS_PATH, NO_ROUTE, STARTING
from netbird_proxy.pipeline.ending import Ending, Environment, FixedAnswer
from netbird_proxy.pipeline.endpoint import EndpointApplication
from netbird_proxy.pipeline.forward import Forwarder, Target
from netbird_proxy.pipeline.head_rules import CORE_NAMES, HeadRules
from netbird_proxy.pipeline.pipeline import Pipeline
from netbird_proxy.pipeline.request_heads import RequestHeads
from netbird_proxy.pipeline.response_heads import ResponseHeads
from netbird_proxy.pipeline.response_transforms import ResponseTransforms
from netbird_proxy.pipeline.selection import Selection
from netbird_proxy.pipeline.upgrade import IDLE, Upgrader
from netbird_proxy.routing.ownership import check_response_owners, request_owners
from netbird_proxy.routing.protection import Protection
from netbird_proxy.routing.table import HostRoutes, Route
from netbird_proxy.upstreams.judged import JudgedDialer
from netbird_proxy.upstreams.pools import Pools, RetiringPool

log = structlog.get_logger("netbird_proxy.routing")


class RouteHooks(Protocol):
    """The part of `routing.hooks.Hooks` that the compiler uses. All may raise RouteRefused or PluginFailed."""

    def restrict(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, Guard]]: ...
    def endpoint(self, host: ServiceMapping, proxy: Proxy) -> Sequence[tuple[str, Endpoint]]: ...
    def authenticate(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, Authenticator]]: ...
    def authorize(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, Guard]]: ...
    def transform_request(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, RequestTransform]]: ...
    def transform_response(self, route: RouteSpec, proxy: Proxy) -> Sequence[tuple[str, ResponseTransform]]: ...
    def select(self, route: RouteSpec, proxy: Proxy) -> tuple[str, Selector] | None: ...
    def observe(self, route: RouteSpec | None, proxy: Proxy) -> Sequence[tuple[str, Observer]]: ...
    def dialer(self, route: RouteSpec, upstream: Upstream, proxy: Proxy) -> tuple[str, Dialer] | None: ...
    def pages(self, proxy: Proxy) -> tuple[str, Pages] | None: ...


@dataclass(frozen=True, slots=True)
class _Steps:
    """The steps that the hooks returned for a route."""

    restrict: Sequence[tuple[str, Guard]]
    authenticate: Sequence[tuple[str, Authenticator]]
    authorize: Sequence[tuple[str, Guard]]

    def judge_upgrades(self, kind: Kind) -> bool:
        """True if every step that can refuse a request can also judge an upgrade: none may bypass a guard."""
        needed = [guard.kinds for _, guard in (*self.restrict, *self.authorize) if not guard.observe]
        needed += [step.kinds for _, step in self.authenticate if step.phase == "exclusive"]
        return all("websocket" in kinds for kinds in needed if kind in kinds)


class Compiled:
    """A mapping's routes, and the pools that they use.

    Attributes:
        tunneled: for each route whose targets are all reached through the account's tunnel, their addresses.
    """

    __slots__ = ("pools", "routes", "tunneled")

    def __init__(
        self,
        routes: HostRoutes,
        pools: Sequence[RetiringPool] = (),
        tunneled: Iterable[tuple[Address, ...]] = (),
    ) -> None:
        self.routes = routes
        self.pools = tuple(pools)
        self.tunneled = tuple(tunneled)


class Compiler:
    """Builds routes with one set of hooks.

    Args:
        environment: state that all pipelines share: the guards' timeout, counters, hanging steps.
        pseudonym: this proxy's name in `Via`; a request that already has it is in a loop. By default it is unique to
            this process, so that another proxy of this kind in front of it is not taken for a loop.
        cookies: cookie name → the plugin that sets it; upstreams and other plugins can neither see nor set it.
        observers: further observers of every exchange, such as the memory behind `explain`.
        rules: addresses that dialers may reach from this machine; None does not judge them.
        upgrade_idle: maximum time in seconds without data on an upgraded connection; then it is cut.
    """

    def __init__(
        self,
        hooks: RouteHooks,
        proxy: Proxy,
        pools: Pools,
        environment: Environment,
        *,
        pseudonym: str = "",
        cookies: Mapping[str, str] | None = None,
        observers: Sequence[tuple[str, Observer]] = (),
        rules: AddressRules | None = None,
        upgrade_idle: float = IDLE,
    ) -> None:
        self._rules = rules
        self._upgrade_idle = upgrade_idle
        self._hooks = hooks
        self._proxy = proxy
        self._pools = pools
        self.environment = environment
        self.pseudonym = (pseudonym or f"netbird-proxy-{secrets.token_hex(4)}").encode("ascii")
        self._cookies = {name.encode("ascii"): plugin for name, plugin in (cookies or {}).items()}
        self._head_rules = HeadRules(None, self._cookies, self.pseudonym)
        environment.cookie_owner = self._head_rules.ours.__getitem__
        self._observers = tuple(BoundObserver(*pair) for pair in observers)
        if (pages := hooks.pages(proxy)) is not None:
            environment.pages = pages[1]
        self._unrouted = self._ending(None)
        self.no_route = Route(None, FixedAnswer(NO_ROUTE, self._unrouted), self._head_rules)
        self.starting = Route(None, FixedAnswer(STARTING, self._unrouted))

    def compile(self, mapping: ServiceMapping) -> Compiled:
        """Compile a mapping's routes.

        Raises:
            RouteRefused: the mapping cannot be served; the message is for management. No pool stays in use.
        """
        if mapping.refused:
            raise RouteRefused(mapping.refused)
        pools: list[RetiringPool] = []
        try:
            return self._compile(mapping, pools)
        except BaseException as exc:
            self._give_back(pools)
            if isinstance(exc, RouteRefused):
                raise
            if isinstance(exc, PluginFailed):
                raise RouteRefused(str(exc)) from exc
            log.exception("mapping.compile_failed", service=mapping.id, account=mapping.account)
            raise RouteRefused(f"the proxy could not compile it: {type(exc).__name__}") from exc

    def closed(self, mapping: ServiceMapping, reason: str) -> Compiled:
        """The closed route of a refused mapping: 503 for every path, without steps and without a pool."""
        answer = FixedAnswer(RouteClosed(reason), self._unrouted)
        route = Route(None, answer, self._closed_rules(mapping))
        return Compiled(HostRoutes(mapping.account, {b"/": route}, route))

    def _closed_rules(self, mapping: ServiceMapping) -> HeadRules:
        """Hide from observers what clients send as a credential, although no step of the route checks it."""
        names = (name.encode("utf-8", "replace") for name in mapping.credential_fields)
        hidden = {folded for name in names if TOKEN.fullmatch(name) and (folded := fold(name)) not in _NO_CREDENTIALS}
        if not hidden:
            return self._head_rules
        return HeadRules(None, self._cookies, self.pseudonym, dict.fromkeys(hidden, frozenset()))

    def drop(self, compiled: Compiled) -> None:
        """Release the pools of routes that are no longer in the table."""
        self._give_back(compiled.pools)

    def _give_back(self, pools: Sequence[RetiringPool]) -> None:
        for pool in pools:
            self._pools.drop(pool)

    def _compile(self, mapping: ServiceMapping, pools: list[RetiringPool]) -> Compiled:
        if not mapping.routes:
            raise RouteRefused("the mapping has no target")
        routes: dict[bytes, Route] = {}
        pipelines: list[tuple[RouteSpec, Pipeline]] = []
        protections: list[Protection] = []
        for spec in mapping.routes:
            if (spec.service, spec.account, spec.host) != (mapping.id, mapping.account, mapping.host):
                raise RouteRefused(f"the route {spec.host}{_path(spec)} is not the mapping's own")
            if spec.kind != "http":
                raise RouteRefused(f"kind {spec.kind} is not served by this proxy yet")
            if not spec.prefix.startswith(b"/") or (spec.prefix != b"/" and spec.prefix.endswith(b"/")):
                raise RouteRefused(f"the path {_path(spec)!r} is not a prefix")
            if spec.prefix in routes:
                raise RouteRefused(f"two routes have the path {_path(spec)}")
            if not spec.upstreams:
                raise RouteRefused(f"the route {_path(spec)} has no target")
            pipeline, upgrades, rules, protection = self._route(spec, pools)
            bounded = any(upstream.path != b"/" for upstream in spec.upstreams)
            routes[spec.prefix] = Route(spec, pipeline, rules, upgrades=upgrades, bounded=bounded)
            pipelines.append((spec, pipeline))
            protections.append(protection)
        first_spec, first = pipelines[0]
        # A client sends a credential to every path of a host, so what is one on any path is hidden on these as well.
        of_host = HeadRules(
            None, self._cookies, self.pseudonym, _union(route.rules.credentials for route in routes.values())
        )
        ambiguous = Route(None, FixedAnswer(AMBIGUOUS_PATH, first.ending), of_host)
        differ = not all(protection.equals(protections[0]) for protection in protections[1:])
        if differ and first_spec.pass_ambiguous:
            raise RouteRefused("ambiguous_path is pass, and the service's paths are guarded differently")
        endpoints = self._endpoints(mapping, [pipeline for _, pipeline in pipelines], of_host)
        tunneled = [
            tuple(upstream.address for upstream in protection.spec.upstreams)
            for protection in protections
            if all(getattr(dialer, "through_tunnel", False) for _, dialer in protection.dialers)
        ]
        host_routes = HostRoutes(mapping.account, routes, ambiguous, differ=differ, endpoints=endpoints)
        return Compiled(host_routes, pools, tunneled)

    def _endpoints(
        self, mapping: ServiceMapping, pipelines: Sequence[Pipeline], rules: HeadRules
    ) -> dict[bytes, Route]:
        """The plugins' own applications on this host, each behind the host's restrict steps."""
        exclusive = any(step.phase == "exclusive" for pipeline in pipelines for step in pipeline.authenticate)
        endpoints: dict[bytes, Route] = {}
        for plugin, endpoint in self._hooks.endpoint(mapping, self._proxy):
            if exclusive and not endpoint.on_private:
                continue
            spec = replace(
                mapping.routes[0],
                prefix=f"{OWN_PATHS}{plugin}".encode(),
                upstreams=tuple(upstream for route in mapping.routes for upstream in route.upstreams),
            )
            answers = _bound_answers(self._hooks.transform_response(spec, self._proxy))
            pipeline = Pipeline(
                restrict=self._bind_guards("restrict", spec, self._hooks.restrict(spec, self._proxy)),
                authenticate=(),
                authorize=(),
                forward=EndpointApplication(plugin, endpoint, self.environment),
                ending=self._ending(spec, self._together(answers, rules)),
                transforms=[step for step in answers if step.own_answers],
            )
            endpoints[plugin.encode()] = Route(spec, pipeline, rules)
        return endpoints

    def _route(
        self, spec: RouteSpec, pools: list[RetiringPool]
    ) -> tuple[Pipeline, Pipeline | None, HeadRules, Protection]:
        """The pipelines for requests and for upgrades (None if they cannot be judged), head rules and protection."""
        hooks, proxy = self._hooks, self._proxy
        steps = _Steps(hooks.restrict(spec, proxy), hooks.authenticate(spec, proxy), hooks.authorize(spec, proxy))
        restrict, authenticate, authorize = self._bound(spec, steps, spec.kind)
        changes = hooks.transform_request(spec, proxy)
        transforms = [BoundTransform(plugin, step) for plugin, step in changes]
        _must_enforce(spec, restrict, authenticate, authorize, transforms)
        rules = HeadRules(request_owners(transforms), self._cookies, self.pseudonym, _credentials(steps))
        answers = hooks.transform_response(spec, proxy)
        answer_transforms = _bound_answers(answers)
        together = self._together(answer_transforms, rules)
        targets: list[Target] = []
        dialers: list[tuple[str, Dialer]] = []
        for upstream in spec.upstreams:
            if upstream.scheme not in ("http", "https"):
                raise RouteRefused(f"the target {upstream} is not HTTP")
            requests = RequestHeads(spec, upstream, rules, transforms)
            responses = ResponseHeads(spec, upstream, rules, together)
            offered = hooks.dialer(spec, upstream, proxy)
            if offered is None:
                raise RouteRefused(f"no plugin of this proxy can reach {upstream}")
            dialers.append(offered)
            dialer = offered[1]
            if self._rules is not None:
                dialer = JudgedDialer(dialer, AddressJudge(self._rules, spec.account))
            pool = self._pools.take(spec.account, upstream, dialer)
            pools.append(pool)
            targets.append(Target(upstream, pool, requests, responses))
        steps_of = (steps.restrict, steps.authenticate, steps.authorize, changes, answers)
        protection = Protection(spec, steps_of, dialers)
        ending = self._ending(spec, together)
        selector, selection = self._selection(spec)
        shown: list[BoundTransform | BoundSelector | BoundResponseTransform] = [
            *transforms,
            *selector,
            *answer_transforms,
        ]
        pipeline = Pipeline(
            restrict=restrict,
            authenticate=authenticate,
            authorize=authorize,
            forward=Forwarder(targets, selection),
            ending=ending,
            transforms=shown,
        )
        if not steps.judge_upgrades(spec.kind):
            return pipeline, None, rules, protection
        restrict, authenticate, authorize = self._bound(spec, steps, "websocket")
        upgrades = Pipeline(
            restrict=restrict,
            authenticate=authenticate,
            authorize=authorize,
            forward=Upgrader(targets, selection, idle=self._upgrade_idle),
            ending=ending,
            transforms=shown,
        )
        return pipeline, upgrades, rules, protection

    def _selection(self, spec: RouteSpec) -> tuple[list[BoundSelector], Selection | None]:
        """A plugin's selector, if the route has several upstreams and a plugin selects among them."""
        if len(spec.upstreams) < 2 or (offered := self._hooks.select(spec, self._proxy)) is None:
            return [], None
        selector = BoundSelector(*offered)
        return [selector], Selection(selector, spec.upstreams, self.environment)

    def _bound(
        self, spec: RouteSpec, steps: _Steps, kind: Kind
    ) -> tuple[list[BoundGuard], list[BoundAuthenticator], list[BoundGuard]]:
        return (
            self._bind_guards("restrict", spec, steps.restrict, kind),
            [BoundAuthenticator(plugin, step) for plugin, step in steps.authenticate if kind in step.kinds],
            self._bind_guards("authorize", spec, steps.authorize, kind),
        )

    @staticmethod
    def _bind_guards(
        stage: GuardStage, spec: RouteSpec, guards: Sequence[tuple[str, Guard]], kind: Kind | None = None
    ) -> list[BoundGuard]:
        for plugin, guard in guards:
            if guard.observe and plugin in spec.guarding:
                raise RouteRefused(f"{plugin} only observes what {', '.join(spec.guarding[plugin])} asks it to guard")
        return [BoundGuard(plugin, stage, guard) for plugin, guard in guards if (kind or spec.kind) in guard.kinds]

    def _together(self, transforms: Sequence[BoundResponseTransform], rules: HeadRules) -> ResponseTransforms | None:
        return ResponseTransforms(transforms, rules, self.environment) if transforms else None

    def _ending(self, spec: RouteSpec | None, transforms: ResponseTransforms | None = None) -> Ending:
        observers = [BoundObserver(plugin, step) for plugin, step in self._hooks.observe(spec, self._proxy)]
        return Ending((*observers, *self._observers), self.environment, transforms)


def _path(spec: RouteSpec) -> str:
    return spec.prefix.decode("latin-1")


def _bound_answers(answers: Sequence[tuple[str, ResponseTransform]]) -> list[BoundResponseTransform]:
    """Bind the response transforms of a route. Raises RouteRefused unless each name has a single owner."""
    transforms = [BoundResponseTransform(plugin, step) for plugin, step in answers]
    check_response_owners(transforms)
    return transforms


def _must_enforce(
    spec: RouteSpec,
    restrict: Sequence[BoundGuard],
    authenticate: Sequence[BoundAuthenticator],
    authorize: Sequence[BoundGuard],
    transforms: Sequence[BoundTransform],
) -> None:
    """Check that each plugin whose guarding field is set can refuse requests, or owns the headers that it guards.

    Raises:
        RouteRefused: a plugin enforces nothing.
    """
    enforcing = {guard.plugin for guard in (*restrict, *authorize) if not guard.observe}
    enforcing |= {step.plugin for step in authenticate if step.phase == "exclusive"}
    enforcing |= {transform.plugin for transform in transforms if transform.owns}
    for plugin, fields in spec.guarding.items():
        if plugin not in enforcing:
            raise RouteRefused(
                f"{plugin} enforces nothing for {', '.join(fields)} on {_path(spec)}: its hooks must return a guard, "
                "an exclusive authenticator, or a transform that owns headers"
            )


def _credentials(steps: _Steps) -> dict[bytes, frozenset[str]]:
    """Folded header name → the plugins whose steps declare that they check its value.

    Raises:
        RouteRefused: a name is none, or of a field that the core itself reads.
    """
    checked_by: list[dict[bytes, frozenset[str]]] = []
    declared = [(plugin, guard.credentials) for plugin, guard in (*steps.restrict, *steps.authorize)]
    declared += [(plugin, step.credentials) for plugin, step in steps.authenticate]
    for plugin, names in declared:
        for name in names:
            if not isinstance(name, bytes) or not TOKEN.fullmatch(name):
                raise RouteRefused(f"{plugin} may not declare {name!r} a credential: it is not a header name in bytes")
            if (folded := fold(name)) in _NO_CREDENTIALS:
                raise RouteRefused(f"{plugin} may not declare {folded.decode()} a credential: the core reads it")
            checked_by.append({folded: frozenset((plugin,))})
    return _union(checked_by)


_NO_CREDENTIALS = CORE_NAMES - {b"proxy-authorization"} | {b"cookie", b"via"}


def _union(declared: Iterable[Mapping[bytes, frozenset[str]]]) -> dict[bytes, frozenset[str]]:
    union: dict[bytes, frozenset[str]] = {}
    for names in declared:
        for name, plugins in names.items():
            union[name] = union.get(name, frozenset()) | plugins
    return union
