"""Builds all parts of a proxy from its settings, and starts none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from netbird_proxy.accounts.accounts import Accounts, AccountState, ProxyPeers
from netbird_proxy.api.model import Upstream
from netbird_proxy.api.steps import Observer
from netbird_proxy.api.tunnels import Dialer
from netbird_proxy.app import ReverseProxy
from netbird_proxy.listening.origins import Origins
from netbird_proxy.listening.tls import ServerTls
from netbird_proxy.pipeline.ending import Environment
from netbird_proxy.process.host_api import HostApi
from netbird_proxy.process.listeners import Listeners, WorkerSockets
from netbird_proxy.process.loading import Loaded
from netbird_proxy.process.reload import reload_certificates
from netbird_proxy.process.settings import Limits
from netbird_proxy.process.watchdog import Watchdog
from netbird_proxy.routing.apply import YIELDING, Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.sources.file.watch import FileMappings
from netbird_proxy.sources.management.absent import NoManagement
from netbird_proxy.sources.management.channel import Connection, ManagementClient
from netbird_proxy.sources.management.gate import MappingGate
from netbird_proxy.sources.management.mappings import SOURCE, ManagementMappings
from netbird_proxy.sources.management.statuses import StatusReports
from netbird_proxy.sources.management.stream import MappingStream
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.pools import Pools
from netbird_wire.extensions import Extension


@dataclass(frozen=True, slots=True)
class Assembly:
    """All parts of one proxy.

    Attributes:
        client, stream, gate: None without `[management]`. The stream's updates pass the gate until it is closed.
        file: None without `mappings_file`.
    """

    loaded: Loaded
    host: HostApi
    environment: Environment
    watchdog: Watchdog
    pools: Pools
    routing: Routing
    app: ReverseProxy
    listeners: Listeners
    accounts: Accounts
    client: ManagementClient | None
    stream: MappingStream | None
    gate: MappingGate | None
    statuses: StatusReports
    file: FileMappings | None


def assemble(
    loaded: Loaded, observers: Sequence[tuple[str, Observer]] = (), sockets: WorkerSockets | None = None
) -> Assembly:
    """Build all parts, each after those that it uses.

    Args:
        observers: called for each exchange after those of plugins, with the name that reports their failures.
        sockets: the sockets of a worker; by default the listeners bind their addresses themselves.

    Raises:
        SettingsError: the state directory, a certificate, the token or the roots cannot be used.
    """
    settings, limits = loaded.settings, loaded.settings.limits
    host = HostApi(loaded)
    tls = ServerTls(settings.tls.certificates) if settings.tls.certificates else None
    if tls is not None:
        reload_certificates(host.reload, tls)
    watchdog = Watchdog(limits.loop_stall, count=host.count)
    origins = Origins()
    environment = Environment(timeout=limits.step_deadline, grace=limits.step_grace, count=host.count)
    pools = Pools(lambda upstream, dialer: _pool(limits, environment, upstream, dialer), grace=limits.drain)
    compiler = Compiler(
        loaded.hooks,
        host,
        pools,
        environment,
        cookies=loaded.hooks.cookies,
        observers=observers,
        rules=host.rules,
        upgrade_idle=limits.upgrade_idle,
    )
    sources = [SOURCE] if settings.management is not None else []
    sources += [YIELDING] if settings.mappings_file is not None else []
    routing = Routing(compiler, limit=limits.services, count=host.count, sources=sources)
    app = ReverseProxy(
        routing,
        recognizes=origins.recognizes,
        notes=loaded.hooks.notes,
        revalidate=limits.revalidate,
        before_all=lambda: _distrust_what_is_cached(client, accounts),
    )
    listeners = Listeners(settings, app, origins, tls, host.count, sockets)
    client = _client(loaded, host) if settings.management is not None else None
    management: ProxyPeers = client or NoManagement()

    def report(state: AccountState) -> None:
        if mappings is not None:
            mappings.on_account(state)

    accounts = Accounts(
        loaded.hooks,
        management,
        host.state_directory,
        listening=listeners.listen_inside if settings.private else None,
        on_change=report,
        on_map=lambda account: app.exchanges.revalidate(account=account),
        on_reachability=lambda account: mappings.on_reachability(account) if mappings is not None else None,
        connections=limits.connections,
        count=host.count,
    )
    statuses = StatusReports(management, host.count)
    mappings: ManagementMappings | None = None
    stream: MappingStream | None = None
    gate: MappingGate | None = None
    if client is not None:
        mappings = ManagementMappings(
            loaded.codec,
            routing,
            accounts,
            client.tokens,
            statuses,
            app.exchanges,
            host.revocations,
            private=settings.private,
            has_certificate=lambda name: tls is not None and tls.covers(name),
        )
        gate = MappingGate(mappings)
        wants_subdomain = settings.management is not None and settings.management.require_subdomain
        stream = MappingStream(
            client,
            lambda: loaded.codec.capabilities(private=host.private, require_subdomain=wants_subdomain),
            gate,
            count=host.count,
        )
    file = FileMappings(settings.mappings_file, loaded.codec, routing) if settings.mappings_file is not None else None
    host.connect(app, accounts, management, listeners)
    return Assembly(
        loaded=loaded,
        host=host,
        environment=environment,
        watchdog=watchdog,
        pools=pools,
        routing=routing,
        app=app,
        listeners=listeners,
        accounts=accounts,
        client=client,
        stream=stream,
        gate=gate,
        statuses=statuses,
        file=file,
    )


def _client(loaded: Loaded, host: HostApi) -> ManagementClient:
    management, limits = loaded.settings.management, loaded.settings.limits
    assert management is not None  # noqa: S101 - the caller checks it
    connection = Connection(
        url=management.url,
        token=management.read_token(),
        proxy_id=host.id,
        version=host.version,
        domain=host.domain,
        allow_insecure=management.allow_insecure,
        roots=management.roots,
        rpc_timeout=limits.rpc_timeout,
        batch_watchdog=limits.batch_watchdog,
        silence=limits.management_silence,
        patience=limits.management_patience,
    )
    return ManagementClient(connection, count=host.count)


def _pool(limits: Limits, environment: Environment, upstream: Upstream, dialer: Dialer) -> UpstreamPool:
    if limits.max_dial_timeout is not None:
        timeout = upstream.dial_timeout or limits.dial_timeout
        upstream = replace(upstream, dial_timeout=min(timeout, limits.max_dial_timeout))
    return UpstreamPool(
        upstream,
        dialer,
        dial_timeout=limits.dial_timeout,
        head_timeout=limits.upstream_head,
        idle_timeout=limits.upstream_idle,
        max_idle=limits.upstream_idle_connections,
        max_in_flight=limits.in_flight,
        share=limits.in_flight_share,
        hung_steps=environment.hung_steps,
        grace=environment.grace,
    )


def _distrust_what_is_cached(client: ManagementClient | None, accounts: Accounts) -> None:
    """Drop cached answers when the timer fires, if management does not report changes.

    While management is away, the cache keeps its own lifetime, because a dropped answer could not be fetched again.
    """
    if client is not None and client.connected and Extension.REVALIDATIONS not in client.extensions:
        accounts.raise_generations()
