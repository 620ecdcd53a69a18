"""The proxy's half: a private route is open only through its account's tunnel, to peers that management admits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib.metadata import version
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, Field

from netbird_private_service.settings import CAPABILITY, FIELD, PrivateServiceSettings, PublicSchemes
from netbird_private_service.validation import Question, TooManyQuestions, Validations
from netbird_proxy import (
    ALLOW,
    Authenticator,
    Claim,
    Decision,
    Deny,
    ExchangeView,
    Group,
    Guard,
    Identity,
    IdentityCache,
    ManagementError,
    PluginInfo,
    Proxy,
    PublicKey,
    RouteRefused,
    RouteSpec,
    UserId,
    always,
    hookimpl,
    is_cross_site,
    is_unsafe,
    retry_after,
)
from netbird_wire.extensions import Extension
from netbird_wire.proxy_service_pb2 import ValidateTunnelPeerRequest, ValidateTunnelPeerResponse

PLUGIN = "private_service"
METHOD = "tunnel"
IDENTITIES = 4096
"""Maximum number of cached identities, by the grant that they were built from: a grant lives for minutes, and building
an identity costs as much as all guards together. The cache does not extend a grant."""

REASONS = {
    "peer_not_found": "peer_unknown",
    "invalid_tunnel_ip": "peer_unknown",
    "not_in_group": "not_in_group",
    "user_not_found": "user_unknown",
    "user_blocked": "user_blocked",
    "pending_approval": "pending_approval",
    "service_not_found": "service_unknown",
}
"""Codes that a client receives for management's reasons. Any other reason becomes `not_allowed`."""


class PrivateServiceOptions(BaseModel):
    """`[private_service]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache_seconds: float = Field(300.0, gt=0, le=3600)
    """Maximum time, in seconds, that the proxy trusts management's answer that a peer may use a service (a grant); a
    change in the account ends it earlier."""
    cache_entries_per_account: int = Field(1024, ge=1)
    """Maximum number of cached grants of one account; above it the oldest is dropped."""
    peer_burst: int = Field(20, ge=1)
    """Maximum number of calls to management that one overlay peer may cause at once; calls by which the proxy
    revalidates open exchanges do not count. Divided by `process.workers`."""
    peer_rate: float = Field(10.0, gt=0)
    """Maximum number of such calls a second after that; further requests are answered 503 with `Retry-After`. Divided
    by `process.workers`."""


class PrivateService:
    """Denies requests from outside the account's tunnel, and asks management about the others."""

    def __init__(self) -> None:
        self._proxy: Proxy | None = None
        self._validations: Validations | None = None
        self._identities: IdentityCache[ValidateTunnelPeerResponse, tuple[PublicKey, Identity]] = IdentityCache(
            IDENTITIES
        )

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-private-service"),
            summary="private services: over the account's tunnel only, by members of the service's access groups",
            capabilities=(CAPABILITY,),
            claims=(Claim(FIELD, guards=always),),
            options=PrivateServiceOptions,
            settings=(PrivateServiceSettings, PublicSchemes),
        )

    @asynccontextmanager
    async def _running(self, proxy: Proxy) -> AsyncIterator[None]:
        options = proxy.options(PrivateServiceOptions)
        self._proxy = proxy
        self._validations = validations = Validations(
            self._ask,
            proxy.generation,
            asyncio.get_running_loop().time,
            lifetime=options.cache_seconds,
            per_account=options.cache_entries_per_account,
            burst=proxy.share.count(options.peer_burst),
            rate=proxy.share.rate(options.peer_rate),
        )
        ready = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(validations.run(ready), name=PLUGIN)
            await ready.wait()
            try:
                yield
            finally:
                running.cancel()

    @hookimpl
    def lifespan(self, proxy: Proxy) -> AbstractAsyncContextManager[None]:
        return self._running(proxy)

    async def _ask(self, question: Question, domain: str) -> ValidateTunnelPeerResponse:
        if self._proxy is None:
            raise ManagementError("the proxy is not running")
        request = ValidateTunnelPeerRequest(tunnel_ip=question.address, domain=domain)
        if Extension.PEER_KEY in self._proxy.management.extensions:
            request.peer_key = question.peer
        answer = await self._proxy.management.call("ValidateTunnelPeer", request)
        if not isinstance(answer, ValidateTunnelPeerResponse):
            raise ManagementError(f"ValidateTunnelPeer: unexpected answer {type(answer).__name__}")
        return answer

    @hookimpl(tryfirst=True)  # the origin is checked before other plugins see the request
    def restrict(self, route: RouteSpec, proxy: Proxy) -> Guard | None:
        if not route.settings(PrivateServiceSettings).private:
            return None
        if not proxy.private:
            raise RouteRefused("a private service needs listeners in the tunnel: this proxy runs without `private`")
        own_targets = frozenset(upstream.address.host for upstream in route.upstreams)

        async def through_the_tunnel(exchange: ExchangeView) -> Decision:
            origin = exchange.origin
            if origin is None or origin.account is None:
                return Deny(403, "tunnel_required", "a private service was requested from outside its account's tunnel")
            if origin.account != route.account:
                # The routing table never matches another account's routes on a tunnel; 404 would reveal nothing.
                return Deny(404, "not_found", f"requested through the tunnel of account {origin.account}")
            if origin.peer.host in own_targets:
                return Deny(421, "loop_detected", f"the caller {origin.peer.host} is this service's own upstream")
            return ALLOW

        # The targets do not affect access, only loops, so the guard does not depend on them.
        return Guard(through_the_tunnel, depends_on=route.account)

    @hookimpl(tryfirst=True)
    def authenticate(self, route: RouteSpec, proxy: Proxy) -> Authenticator | None:
        if not route.settings(PrivateServiceSettings).private:
            asks = proxy.private and route.values.get(PublicSchemes, PublicSchemes()).asks
            if not asks:
                return None
            return Authenticator("ambient", self._optional(route, proxy), depends_on=_dependencies(route))

        identify = partial(self._identify, route=route, proxy=proxy)
        return Authenticator("exclusive", identify, depends_on=_dependencies(route))

    @hookimpl(tryfirst=True)
    def authorize(self, route: RouteSpec) -> Guard | None:
        if not route.settings(PrivateServiceSettings).private:
            return None

        async def admitted_peer(exchange: ExchangeView) -> Decision:
            origin, identity = exchange.origin, exchange.identity
            if origin is None or origin.account != route.account:
                return Deny(403, "tunnel_required", "a private service was requested from outside its account's tunnel")
            if identity is None or identity.by != PLUGIN:
                by = identity.by if identity else "no plugin"
                return Deny(403, "not_allowed", f"the caller was identified by {by}, not by {PLUGIN}")
            if route.same_origin and is_unsafe(exchange) and is_cross_site(exchange):
                return _CROSS_SITE
            return ALLOW

        return Guard(admitted_peer, depends_on=_dependencies(route))

    def _optional(self, route: RouteSpec, proxy: Proxy) -> Callable[[ExchangeView], Awaitable[Identity | Deny | None]]:
        """Identify peers on a public service with logins; other callers may still log in."""

        async def identify(exchange: ExchangeView) -> Identity | Deny | None:
            if exchange.origin is None or exchange.origin.account != route.account:
                return None
            identity = await self._identify(exchange, route=route, proxy=proxy)
            if isinstance(identity, Deny):
                return None
            if route.same_origin and is_unsafe(exchange) and is_cross_site(exchange):
                return _CROSS_SITE
            return identity

        return identify

    async def _identify(self, exchange: ExchangeView, *, route: RouteSpec, proxy: Proxy) -> Identity | Deny:
        origin, validations = exchange.origin, self._validations
        if origin is None or origin.account != route.account:
            return Deny(403, "tunnel_required", "a private service was requested from outside its account's tunnel")
        tunnel = proxy.tunnel(route.account)
        if tunnel is None or validations is None:
            return _later("tunnel_not_ready", "the account's tunnel is not up", 2)
        # The socket's own address, never a forwarded one: WireGuard authenticates only that.
        address = origin.peer.host
        peer = tunnel.whois(address)
        if peer is None:
            return Deny(403, "peer_unknown", f"no peer of the account holds {address}")
        if peer.public_key != origin.peer_key:
            # The connection still belongs to the peer that opened it, although the map assigns its address to another.
            return Deny(403, "peer_unknown", f"{address} no longer belongs to the connection's peer")
        question = Question(route.account, peer.public_key, address, route.host)
        answer = validations.granted(question, proxy.generation(route.account))
        if answer is None:
            try:
                answer = await validations.validate(question, route.domain, ours=exchange.revalidating)
            except TooManyQuestions as exc:
                return _later("too_many_validations", f"peer {peer.public_key}: {exc}", exc.retry_after)
            except ManagementError as exc:
                return _later("management_unavailable", str(exc), exc.retry_after)
        cached = self._identities.get(answer)
        if cached is not None and cached[0] == peer.public_key:
            return cached[1]
        if not answer.valid:
            return _denied(answer, address)
        if not answer.session_token or not answer.user_id:
            return _later("validation_incomplete", "management's grant lacks the user or the token", 2)
        identity = _identity(answer, peer.public_key)
        self._identities.keep(answer, (peer.public_key, identity))
        return identity


# The tunnel identifies every request of a peer's browser, also those that another site's page causes.
_CROSS_SITE = Deny(403, "cross_site", "another site's page made the peer's browser send this request")


def _dependencies(route: RouteSpec) -> tuple[object, ...]:
    """Return the properties of a route that its steps depend on."""
    return route.account, route.host, route.domain, route.same_origin


def _identity(answer: ValidateTunnelPeerResponse, key: str) -> Identity:
    names = list(answer.peer_group_names)
    groups = tuple(Group(id_, names[i] if i < len(names) else "") for i, id_ in enumerate(answer.peer_group_ids))
    attributes = {"peer": answer.principal.peer_id or answer.user_id, "peer_key": key}
    if answer.HasField("principal"):
        # Only our own management distinguishes user and peer; NetBird's sends a peer's id in place of a user's.
        attributes["user"] = answer.principal.user_id
    return Identity(
        user_id=UserId(answer.user_id),
        email=answer.user_email,
        groups=groups,
        method=METHOD,
        attributes=MappingProxyType(attributes),  # read-only, because many exchanges share it
    )


def _denied(answer: ValidateTunnelPeerResponse, address: str) -> Deny:
    facts = {
        "peer_address": address,
        "user": answer.user_email or answer.user_id,
        "peer_groups": ", ".join(answer.peer_group_names or answer.peer_group_ids),
    }
    code = REASONS.get(answer.denied_reason, "not_allowed")
    if code == "not_in_group":
        facts["required_groups"] = ", ".join(answer.required_group_names or answer.required_group_ids) or "unknown"
    return Deny(403, code, f"management denied the peer: {answer.denied_reason or 'no reason given'}", facts=facts)


def _later(code: str, reason: str, seconds: float) -> Deny:
    return Deny(503, code, reason, headers=(retry_after(seconds),))
