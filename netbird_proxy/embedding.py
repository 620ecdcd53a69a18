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
from netbird_proxy.accounts.revocations import RevokedSessions
from netbird_proxy.api.addresses import AddressJudge, AddressRules
from netbird_proxy.api.errors import RouteRefused, SettingsError, TunnelNotReady
from netbird_proxy.api.forwarded import TrustedProxies
from netbird_proxy.api.host import ManagementChannel, OpenExchanges
from netbird_proxy.api.kit import ReloadReport
from netbird_proxy.api.model import AccountId, Address, ServiceMapping
from netbird_proxy.api.tunnels import Dialer, ProtocolFactory, Tunnel
from netbird_proxy.app import ClientAddress, ReverseProxy
from netbird_proxy.asgi import Receive, Scope, Send
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.http.head import check_scope
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
    """A reverse proxy that a program made: its own mappings and plugins, no management, no tunnels, no listeners.

    Clients are on untrusted host sockets: nothing private is served. It must be running (`async with`, or a server that
    speaks ASGI's lifespan) before it serves, so that plugins have started.

    Args:
        mappings: what to serve, as the wire says it or decoded.
        plugins: entry-point names, or `(id, object)` pairs.
        options: the plugins' sections, as their models; a missing one is made from its defaults.
        timeout: seconds that the guards of one exchange have, together.
        client_address: who sent a scope, as an IP literal; "" where that is not known. Without it mappings that
            restrict by address are refused: the server around us may believe anybody's headers.

    Raises:
        PluginFailed: a plugin is missing or wrong.
        RouteRefused: a mapping cannot be served; here nobody else would be told.
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
        super().__init__(routing, check_head=check_scope, client_address=client_address, notes=self._hooks.notes)
        self.proxy.exchanges = self.exchanges
        self._running = False
        self._wanted = [self._decoded(one) for one in mappings]

    def apply(self, mappings: Iterable[ServiceMapping | ProxyMapping]) -> None:
        """Serve exactly these from now on. RouteRefused for the first that cannot be; the others are in force."""
        self._wanted = [self._decoded(one) for one in mappings]
        if self._running:
            self._put_in_force()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[EmbeddedProxy]:
        """Plugins are up and mappings served, for as long as the context lasts. Leave it in the task that entered."""
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
                # What failed inside the context is the caller's own, and comes out as it was.
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
        for report in self.routing.apply(SOURCE, self._wanted):
            if not report.ok:
                raise RouteRefused(f"mapping {report.service}: {report.refused}")

    def _decoded(self, one: ServiceMapping | ProxyMapping) -> ServiceMapping:
        return self._codec.decode(one, source=SOURCE).mapping if isinstance(one, ProxyMapping) else one


class _NoTunnel:
    """Implements `Dialer` where there is no tunnel."""

    async def dial(self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float) -> NoReturn:
        raise TunnelNotReady(f"dial {address}: an embedded proxy has no tunnels")


class _Host:
    """Implements `Proxy` without a process."""

    id = "embedded"
    domain = ""
    private = False
    exchanges: OpenExchanges
    knows_clients = older_name("Proxy.knows_clients", "client_addresses_trusted")

    def __init__(self, options: Iterable[BaseModel], *, client_addresses_trusted: bool) -> None:
        self.client_addresses_trusted = client_addresses_trusted
        self.version = distribution_version("netbird-proxy")
        self.management: ManagementChannel = NoManagement("an embedded proxy has no management")
        self.counters: Counter[str] = Counter()
        self._options: dict[type[BaseModel], BaseModel] = {type(one): one for one in options}
        self._dialer = HostDialer()
        self._rules = AddressRules(self._options.values(), self.listening_addresses)
        self.revocations = RevokedSessions()

    @property
    def state_directory(self) -> Path:
        raise SettingsError("an embedded proxy keeps no state: run netbird-proxy for plugins that need a directory")

    def options(self, model: type[O]) -> O:
        found = self._options.get(model)
        return found if isinstance(found, model) else model()

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
        """There is no connection whose peer could be told apart from a client: the embedder resolves addresses."""

    def on_reload(self, name: str, step: Callable[[ReloadReport], None]) -> None:
        """Nobody asks a program that embeds the proxy for a reload."""

    def count(self, name: str, amount: int = 1) -> None:
        self.counters[name] += amount
