"""The running host: it opens the store, serves REST and gRPC on a port each, and removes expired data."""

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import uvicorn
from pydantic import BaseModel
from starlette.types import ASGIApp

from netbird_host.certificates import ReloadedCertificate
from netbird_host.reload import Reload, ReloadReport
from netbird_host.shutdown import Shutdown
from netbird_management.compute.network_map import NetworkMaps
from netbird_management.grpc.interceptors import calling_proxy
from netbird_management.grpc.plugin_services import plugin_services
from netbird_management.grpc.server import serve_grpc
from netbird_management.login.gates import SessionGates
from netbird_management.login.identity_provider import IdentityProvider
from netbird_management.login.sign_on import SignOn
from netbird_management.model.ids import AccountId
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.access_log import forget_entries_of_nobody, forget_old_entries
from netbird_management.operations.custom_domains import DnsResolver, prove_domains_again
from netbird_management.operations.events import forget_old_events
from netbird_management.operations.peers import disconnect_all_peers, sweep_ephemeral_peers
from netbird_management.operations.proxies import disconnect_all_proxies, forget_stale_proxies
from netbird_management.operations.users import forget_waiting
from netbird_management.plugins.hooks import Hooks
from netbird_management.plugins.steps import OptionsT, ProxyCaller
from netbird_management.rest.app import create_app
from netbird_management.rest.auth import allowed
from netbird_management.rest.bounds import RestLimits, protocol
from netbird_management.rest.context import Context
from netbird_management.rest.permissions import Operation
from netbird_management.settings import ManagementSettings
from netbird_management.store.directory import prepare_directory
from netbird_management.store.holding import Hold, locked_store
from netbird_management.store.state import State

HOUSEKEEPING_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)


class ManagementServer:
    """The state, plugins and settings of the host, as REST, gRPC and plugins (`steps.Management`) see them.

    `rest_port` and `grpc_port` are the bound ports. `setup_secret` is "" if an account existed at the start.
    """

    def __init__(
        self, settings: ManagementSettings, hooks: Hooks, state: State, options: Iterable[BaseModel] = ()
    ) -> None:
        self.settings = settings
        self._options = {type(section): section for section in options}
        self.hooks = hooks
        self.state = state
        self.maps = NetworkMaps(hooks)
        self.resolver = DnsResolver(settings.dns_servers)
        self.setup_secret = "" if state.snapshots.all() else secrets.token_urlsafe(24)
        self.rest_port = 0
        self.grpc_port = 0

    def snapshot(self, account_id: AccountId) -> AccountSnapshot | None:
        return self.state.snapshots.get(account_id)

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
    database = settings.database.get_secret_value()
    async with (
        locked_store(directory, database) as hold,
        State.open(directory, vault, database) as state,
        _listening(ManagementServer(settings, hooks, state, options), hold, shutdown or Shutdown(), reload) as server,
    ):
        yield server


@asynccontextmanager
async def _listening(
    server: ManagementServer, hold: Hold, shutdown: Shutdown, reload: Reload[ManagementSettings] | None
) -> AsyncIterator[ManagementServer]:
    settings, hooks, state = server.settings, server.hooks, server.state
    certificates = {"rest": settings.rest.judge("rest"), "grpc": settings.grpc.judge("grpc")}
    if reload is not None:
        for name, certificate in certificates.items():
            if certificate is not None:
                reload.register(f"{name}.certificate", partial(_reload_certificate, certificate))
    await disconnect_all_proxies(state)
    await disconnect_all_peers(state)
    sign_on = None
    if settings.oidc is not None:
        provider, gates = IdentityProvider(settings.oidc), SessionGates(hooks, server)
        sign_on = SignOn(state, provider, gates, dns_domain=settings.dns_domain)
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
    )
    async with hooks.lifespan(server):
        # Plugins' services and routes are validated before the host listens.
        services = plugin_services(hooks.rpc(server))
        app = create_app(context, hooks.routes(server), allowed_origins=settings.rest.allowed_origins)
        async with (
            _serve_rest(app, settings, shutdown, state, certificates["rest"]) as rest_port,
            serve_grpc(
                server,
                settings.grpc,
                grace=settings.grace,
                signal=settings.signal,
                shutdown=shutdown,
                sign_on=sign_on,
                services=services,
                trusted_proxies=settings.trusted_proxies,
                certificate=certificates["grpc"],
                log_entries=settings.access_log_entries,
            ) as grpc_port,
            asyncio.TaskGroup() as tasks,
        ):
            server.rest_port, server.grpc_port = rest_port, grpc_port
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
async def _serve_rest(
    app: ASGIApp,
    settings: ManagementSettings,
    shutdown: Shutdown,
    state: State,
    certificate: ReloadedCertificate | None,
) -> AsyncIterator[int]:
    listener, limits = settings.rest, RestLimits()
    bound = listener.bind("rest")
    config = uvicorn.Config(
        app,
        http=protocol(limits, state.count),
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
            try:
                yield bound.getsockname()[1]
            finally:
                asked.cancel()
                server.should_exit = True
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
