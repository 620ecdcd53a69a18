"""The proxy without its process: an application to mount in any ASGI server, or to call in a program."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import NoReturn, TypeVar

import structlog
from pydantic import BaseModel

from netbird_host.deprecation import older_name
from netbird_http import judge_scope
from netbird_proxy.accounts.revocations import RevokedSessions
from netbird_proxy.api.addresses import AddressJudge, AddressRules
from netbird_proxy.api.errors import RouteRefused, SettingsError, TunnelNotReady
from netbird_proxy.api.forwarded import TrustedProxies
from netbird_proxy.api.host import ManagementChannel, OpenExchanges
from netbird_proxy.api.kit import ReloadReport
from netbird_proxy.api.model import AccountId, Address, ServiceMapping
from netbird_proxy.api.share import WHOLE
from netbird_proxy.api.tunnels import Dialer, ProtocolFactory, Tunnel
from netbird_proxy.app import ClientAddress, ReverseProxy
from netbird_proxy.asgi import Receive, Scope, Send
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.pipeline.ending import GUARD_TIMEOUT, Environment
from netbird_proxy.routing.apply import Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.sources.decode.claims import CORE_CLAIMS
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.sources.management.absent import NoManagement
from netbird_proxy.upstreams.host_dialer import HostDialer
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.pools import Pools
from netbird_wire.proxy_service_pb2 import ProxyMapping

log = structlog.get_logger("netbird_proxy.embedding")

O = TypeVar("O", bound=BaseModel)  # noqa: E741

SOURCE = "program"


class EmbeddedProxy(ReverseProxy):
    """A reverse proxy inside a program, with mappings and plugins, but without management, tunnels and listeners.

    Clients count as connected to an untrusted host socket, so no private service is served. The proxy must be running
    (`async with`, or under a server that supports ASGI's lifespan) before it serves, so that plugins are started.

    Args:
        mappings: mappings to serve, in their wire form or decoded.
        plugins: entry-point names, or `(id, object)` pairs.
        options: the plugins' sections, as their models; a missing one is made from its defaults.
        timeout: seconds that the guards of one exchange have, together.
        client_address: returns the address of a scope's client as an IP literal; "" if it is unknown. Without it,
            mappings that restrict by address are refused, because the server may trust any client's headers.

    Raises:
        PluginFailed: a plugin is missing or wrong.
        RouteRefused: a mapping cannot be served; there is no management to report it to.
    """

    def __init__(
        self,
        mappings: Iterable[ServiceMapping | ProxyMapping] = (),
        plugins: Sequence[str | tuple[str, object]] = (),
        *,
        options: Iterable[BaseModel] = (),
        timeout: float = GUARD_TIMEOUT,
        client_address: ClientAddress | None = None,
    ) -> None:
        self._hooks = load_hooks(plugins, defaults=DEFAULTS, core_claims=CORE_CLAIMS)
        self._codec = Codec(self._hooks)
        self.proxy = _Host(options, client_addresses_trusted=client_address is not None)
        self._pools = Pools(UpstreamPool)
        environment = Environment(timeout=timeout, count=self.proxy.count)
        routing = Routing(Compiler(self._hooks, self.proxy, self._pools, environment, cookies=self._hooks.cookies))
        super().__init__(routing, check_head=judge_scope, client_address=client_address, notes=self._hooks.notes)
        self.proxy.exchanges = self.exchanges
        self._running = False
        self._mappings = [self._decoded(record) for record in mappings]

    def apply(self, mappings: Iterable[ServiceMapping | ProxyMapping]) -> None:
        """Replace all mappings. RouteRefused for the first one that cannot be served; the others are in force."""
        self._mappings = [self._decoded(record) for record in mappings]
        if self._running:
            self._put_in_force()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[EmbeddedProxy]:
        """Run the plugins and serve the mappings within this context. The task that enters it must leave it."""
        async with self._hooks.running(self.proxy):
            try:
                self._put_in_force()
                self._running = True
                async with asyncio.TaskGroup() as group:
                    asking = group.create_task(self.exchanges.run(), name="open exchanges")
                    try:
                        yield self
                    finally:
                        asking.cancel()
            except BaseExceptionGroup as failures:
                # An exception inside the context is the caller's own, and is raised unchanged.
                raise failures.exceptions[0] from None
            finally:
                self._running = False
                self.routing.apply(SOURCE, [])
                self._pools.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await super().__call__(scope, receive, send)
            return
        await receive()
        step = "startup"
        try:
            async with self.running():
                await send({"type": "lifespan.startup.complete"})
                step = "shutdown"
                await receive()
        except Exception as exc:
            log.exception("embedded.failed", step=step)
            await send({"type": f"lifespan.{step}.failed", "message": f"{type(exc).__name__}: {exc}"})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    def _put_in_force(self) -> None:
        for report in self.routing.apply(SOURCE, self._mappings):
            if not report.ok:
                raise RouteRefused(f"mapping {report.service}: {report.refused}")

    def _decoded(self, record: ServiceMapping | ProxyMapping) -> ServiceMapping:
        return self._codec.decode(record, source=SOURCE).mapping if isinstance(record, ProxyMapping) else record


class _NoTunnel:
    """Implements `Dialer` where there is no tunnel."""

    async def dial(self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float) -> NoReturn:
        raise TunnelNotReady(f"dial {address}: an embedded proxy has no tunnels")


class _Host:
    """Implements `Proxy` without a process."""

    id = "embedded"
    domain = ""
    private = False
    share = WHOLE
    exchanges: OpenExchanges
    knows_clients = older_name("Proxy.knows_clients", "client_addresses_trusted")

    def __init__(self, options: Iterable[BaseModel], *, client_addresses_trusted: bool) -> None:
        self.client_addresses_trusted = client_addresses_trusted
        self.version = distribution_version("netbird-proxy")
        self.management: ManagementChannel = NoManagement("an embedded proxy has no management")
        self.counters: Counter[str] = Counter()
        self._options: dict[type[BaseModel], BaseModel] = {type(section): section for section in options}
        self._dialer = HostDialer()
        self._rules = AddressRules(self._options.values(), self.listening_addresses)
        self.revocations = RevokedSessions()

    @property
    def state_directory(self) -> Path:
        raise SettingsError("an embedded proxy keeps no state: run netbird-proxy for plugins that need a directory")

    def options(self, model: type[O]) -> O:
        section = self._options.get(model)
        return section if isinstance(section, model) else model()

    def tunnel(self, account: AccountId) -> Tunnel | None:
        return None

    def account_dialer(self, account: AccountId) -> Dialer:
        return _NoTunnel()

    def host_dialer(self) -> Dialer:
        return self._dialer

    def direct_dialer(self, account: AccountId) -> Dialer:
        return HostDialer(AddressJudge(self._rules, account))

    def address_refusal(self, account: AccountId, address: Address) -> str:
        return self._rules.refusal(account, *address)

    def generation(self, account: AccountId) -> int:
        return 0

    def listening_addresses(self) -> Sequence[Address]:
        return ()

    def trust(self, proxies: TrustedProxies | None) -> None:
        """Does nothing: the embedding program resolves client addresses."""

    def on_reload(self, name: str, step: Callable[[ReloadReport], None]) -> None:
        """Does nothing: an embedded proxy has no reload."""

    def count(self, name: str, amount: int = 1) -> None:
        self.counters[name] += amount
