"""The running host: it opens the store, serves REST and gRPC on a port each, and removes expired data."""

import asyncio
import contextlib
import logging
import secrets
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import uvicorn
from pydantic import BaseModel
from starlette.types import ASGIApp

from netbird_host.certificates import ReloadedCertificate
from netbird_host.reload import Reload, ReloadReport
from netbird_host.shutdown import Shutdown
from netbird_management.compute.network_map import NetworkMaps
from netbird_management.front import ALPN, Front
from netbird_management.grpc.interceptors import call_address, calling_proxy
from netbird_management.grpc.peer_configuration import PeerConfiguration
from netbird_management.grpc.plugin_services import PluginServices, plugin_services
from netbird_management.grpc.server import serve_grpc
from netbird_management.login.agent_logins import AgentLogins
from netbird_management.login.gates import SessionGates
from netbird_management.login.identity_provider import IdentityProvider
from netbird_management.login.sign_on import SignOn
from netbird_management.model.ids import AccountId
from netbird_management.model.server_urls import is_loopback
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.access_log import forget_entries_of_nobody, forget_old_entries
from netbird_management.operations.custom_domains import DnsResolver, prove_domains_again
from netbird_management.operations.events import forget_old_events
from netbird_management.operations.peers import disconnect_all_peers, sweep_ephemeral_peers
from netbird_management.operations.proxies import disconnect_all_proxies, forget_stale_proxies
from netbird_management.operations.users import forget_waiting
from netbird_management.plugins.hooks import Hooks
from netbird_management.plugins.steps import OptionsT, PeerServers, ProxyCaller
from netbird_management.rest.app import create_app
from netbird_management.rest.auth import allowed
from netbird_management.rest.bounds import RestLimits, protocol
from netbird_management.rest.context import Context
from netbird_management.rest.permissions import Operation
from netbird_management.rest.upgrades import Upgrades
from netbird_management.settings import ManagementSettings
from netbird_management.store.directory import prepare_directory, relay_secret
from netbird_management.store.holding import Hold, locked_store
from netbird_management.store.state import State

HOUSEKEEPING_SECONDS: Final = 60.0
SIGNAL_SERVICE: Final = "signalexchange.SignalExchange"

_log = logging.getLogger(__name__)


class ManagementServer:
    """The state, plugins and settings of the host, as REST, gRPC and plugins (`steps.Management`) see them.

    `rest_port` and `grpc_port` are the bound ports, and `announced` makes the configuration that peers get.
    `setup_secret` is "" if an account existed at the start.
    """

    def __init__(
        self,
        settings: ManagementSettings,
        hooks: Hooks,
        state: State,
        options: Iterable[BaseModel] = (),
        *,
        relay_secret: str = "",
    ) -> None:
        self.settings = settings
        self._options = {type(section): section for section in options}
        self.hooks = hooks
        self.state = state
        self.maps = NetworkMaps(hooks)
        self.resolver = DnsResolver(settings.dns_servers)
        self.setup_secret = "" if state.snapshots.all() else secrets.token_urlsafe(24)
        self.relay_secret = relay_secret
        self.announced = PeerConfiguration()
        self.rest_port = 0
        self.grpc_port = 0

    @property
    def rest_url(self) -> str:
        return self.settings.rest.url(self.rest_port, self.settings.hosts) if self.rest_port else ""

    @property
    def grpc_url(self) -> str:
        if self.settings.rest.grpc and not self.settings.grpc.public_url:
            return self.rest_url
        return self.settings.grpc.url(self.grpc_port, self.settings.hosts) if self.grpc_port else ""

    def announce(self, grpc_port: int, services: PluginServices) -> PeerConfiguration:
        """The servers that peers are told, once both ports are bound: the operator's, else those of plugins. A server
        that nobody runs is never announced. Raises `HookError`."""
        self.grpc_port, settings = grpc_port, self.settings
        own = self.hooks.peer_servers(self)
        signal = own.signal or (self.grpc_url if SIGNAL_SERVICE in services.names else "")
        if settings.signal:
            plain = settings.grpc.certificate is None
            scheme = "" if "://" in settings.signal else "http://" if plain else "https://"
            signal = scheme + settings.signal
        servers = PeerServers(signal, settings.relays or own.relays, settings.stuns or own.stuns)
        for url in (servers.signal, *servers.relays):
            if is_loopback(url):
                _log.warning("peers.loopback_server", extra={"server": url})
        self.announced = PeerConfiguration(servers, settings.turns, self.relay_secret, settings.credentials_seconds)
        return self.announced

    def snapshot(self, account_id: AccountId) -> AccountSnapshot | None:
        return self.state.snapshots.get(account_id)

    def account_of_peer(self, public_key: str) -> AccountId | None:
        match = self.state.snapshots.by_peer_key(public_key)
        return None if match is None else match[1].account_id

    def options(self, model: type[OptionsT]) -> OptionsT:
        """The plugin's section of the settings; its defaults if the section is absent.

        Raises `LookupError` for a model that no loaded plugin describes as its options.
        """
        if model not in self.hooks.options.values():
            raise LookupError(f"{model.__name__} is not the options model of a loaded plugin")
        section = self._options.get(model)
        return section if isinstance(section, model) else model()

    def allowed(self, module: str, operation: Operation) -> Any:
        return allowed(module, operation)

    def caller_address(self) -> str:
        return call_address()

    def proxy_caller(self) -> ProxyCaller:
        proxy = calling_proxy()
        proxy_id = "" if proxy.connection is None else proxy.connection.proxy_id
        return ProxyCaller(proxy.token.account_id, proxy.address, proxy_id)


@asynccontextmanager
async def serve(
    settings: ManagementSettings,
    hooks: Hooks,
    shutdown: Shutdown | None = None,
    *,
    options: Iterable[BaseModel] = (),
    reload: Reload[ManagementSettings] | None = None,
) -> AsyncIterator[ManagementServer]:
    """Runs the whole host: it listens on entry and stops on exit.

    On exit, open calls get `settings.grace` seconds to end; a second request to `shutdown` cuts them at once.

    Args:
        options: the plugins' sections of the settings.
        reload: the reload at which certificates register.

    Raises:
        StoreError: the store cannot be opened.
        HookError: a plugin failed.
        OSError: an address cannot be bound.
    """
    directory = settings.state_directory
    vault = await asyncio.to_thread(prepare_directory, directory)
    secret = await asyncio.to_thread(relay_secret, directory, settings.relay_secret)
    database = settings.database.get_secret_value()
    async with (
        locked_store(directory, database) as hold,
        State.open(directory, vault, database) as state,
        _listening(
            ManagementServer(settings, hooks, state, options, relay_secret=secret), hold, shutdown or Shutdown(), reload
        ) as server,
    ):
        yield server


@asynccontextmanager
async def _listening(
    server: ManagementServer, hold: Hold, shutdown: Shutdown, reload: Reload[ManagementSettings] | None
) -> AsyncIterator[ManagementServer]:
    settings, hooks, state = server.settings, server.hooks, server.state
    alpn = ALPN if settings.rest.grpc else ()
    certificates = {"rest": settings.rest.judge("rest", alpn=alpn), "grpc": settings.grpc.judge("grpc")}
    if reload is not None:
        for name, certificate in certificates.items():
            if certificate is not None:
                reload.register(f"{name}.certificate", partial(_reload_certificate, certificate))
    await disconnect_all_proxies(state)
    await disconnect_all_peers(state)
    sign_on = agents = None
    if settings.oidc is not None:
        provider, gates = IdentityProvider(settings.oidc), SessionGates(hooks, server)
        sign_on = SignOn(state, provider, gates, dns_domain=settings.dns_domain)
        agents = AgentLogins(state, provider, dns_domain=settings.dns_domain)
    context = Context(
        state,
        hooks,
        server.maps,
        refused_domains=(*settings.hosts, *settings.refused_domains),
        setup_secret=server.setup_secret,
        dns_domain=settings.dns_domain,
        resolver=server.resolver,
        sign_on=sign_on,
        trusted_proxies=settings.trusted_proxies,
        agent_login=settings.oidc.agent_login if settings.oidc is not None else None,
    )
    async with hooks.lifespan(server):
        # Plugins' services and routes are validated before the host listens.
        services = plugin_services(hooks.rpc(server))
        upgrades = Upgrades(hooks.upgrades(server), settings.trusted_proxies)
        app = create_app(context, hooks.routes(server), allowed_origins=settings.rest.allowed_origins)
        async with (
            _front(server) as front,
            _serve_rest(app, server, shutdown, certificates["rest"], upgrades, front),
            serve_grpc(
                server,
                settings.grpc,
                grace=settings.grace,
                announce=server.announce,
                shutdown=shutdown,
                sign_on=sign_on,
                agents=agents,
                services=services,
                trusted_proxies=settings.trusted_proxies,
                certificate=certificates["grpc"],
                log_entries=settings.access_log_entries,
                inner=None if front is None else front.path,
                addresses={} if front is None else front.addresses,
            ),
            asyncio.TaskGroup() as tasks,
        ):
            background = [tasks.create_task(_keep_house(server)), tasks.create_task(hold.watch())]
            try:
                yield server
            finally:
                for task in background:
                    task.cancel()


def _reload_certificate(certificate: ReloadedCertificate, report: ReloadReport) -> None:
    if certificate.reload():
        report.done.append(f"certificate {certificate.cert}")


@asynccontextmanager
async def _front(host: ManagementServer) -> AsyncIterator[Front | None]:
    """The front of the REST port, if gRPC is served there too. Its socket lies in a directory that only this process's
    user can open, with a short path."""
    if not host.settings.rest.grpc:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="netbird-management-") as directory:
        yield Front(Path(directory) / "grpc.sock", host.state.count)


@asynccontextmanager
async def _serve_rest(
    app: ASGIApp,
    host: ManagementServer,
    shutdown: Shutdown,
    certificate: ReloadedCertificate | None,
    upgrades: Upgrades,
    front: Front | None,
) -> AsyncIterator[None]:
    settings, state = host.settings, host.state
    listener, limits = settings.rest, RestLimits()
    bound = listener.bind("rest")
    rest = protocol(limits, state.count, upgrades)
    config = uvicorn.Config(
        app,
        # uvicorn calls it as it calls a class.
        http=rest if front is None else cast("type[asyncio.Protocol]", front.protocol(rest)),
        ws="none",
        h11_max_incomplete_event_size=limits.head_bytes,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        access_log=False,
        log_config=None,
        lifespan="off",
        ssl_certfile=listener.certificate,
        ssl_keyfile=listener.key,
        ssl_context_factory=None if certificate is None else lambda _config, _default: certificate.context,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
    )
    server = _Rest(config)
    with bound:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(server.serve(sockets=[bound]))
            asked = tasks.create_task(_exit_when_asked(server, shutdown))
            host.rest_port = bound.getsockname()[1]
            try:
                yield
            finally:
                asked.cancel()
                server.should_exit = True
                if front is not None:  # gRPC has ended its calls
                    front.close()
                if not await shutdown.drain(asyncio.wait((serving,)), timeout=settings.grace + 1):
                    server.cut()


async def _exit_when_asked(server: uvicorn.Server, shutdown: Shutdown) -> None:
    """Stops REST as soon as a shutdown is requested: REST would otherwise accept requests until gRPC has stopped."""
    await shutdown.wait()
    server.should_exit = True


class _Rest(uvicorn.Server):
    """uvicorn's server without its signal handlers: the command handles the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def cut(self) -> None:
        """Aborts all open connections. Since Python 3.12.1, closing a server waits for its connections."""
        self.force_exit = True
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()


async def _keep_house(server: ManagementServer) -> None:
    """Removes expired data every minute, and logs the limits that were reached. A failure is logged, and the next run
    tries again."""
    logged: Counter[str] = Counter()
    while True:
        if reached := server.state.counters - logged:
            _log.warning("limits.reached", extra=dict(reached))
            logged = server.state.counters.copy()
        try:
            await forget_stale_proxies(server.state)
            await prove_domains_again(server.state, server.resolver)
            await sweep_ephemeral_peers(server.state)
            await forget_old_entries(server.state, server.settings.access_log_days)
            await forget_old_events(server.state)
            await forget_waiting(server.state)
            await forget_entries_of_nobody(server.state)
        except Exception:
            _log.exception("housekeeping.failed")
        await asyncio.sleep(HOUSEKEEPING_SECONDS)
