"""The process: what the proxy is made of, in the order in which it starts, and the reverse in which it stops."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel

from netbird_host import logs
from netbird_host.collector import calm_collector
from netbird_host.descriptors import raise_limit
from netbird_host.shutdown import Shutdown, on_signals
from netbird_host.systemd import Supervisor, inherited_sockets
from netbird_proxy.accounts.accounts import Accounts, AccountState, InboundListeners, ProxyPeers
from netbird_proxy.accounts.revocations import RevokedSessions
from netbird_proxy.api.errors import ProxyError, SettingsError
from netbird_proxy.api.forwarded import TrustedProxies
from netbird_proxy.api.host import ManagementChannel, OpenExchanges
from netbird_proxy.api.model import AccountId, Address, Upstream
from netbird_proxy.api.tunnels import Dialer, Tunnel
from netbird_proxy.app import ReverseProxy
from netbird_proxy.listening.connections import Connections, ListenLimits
from netbird_proxy.listening.origins import Origins
from netbird_proxy.listening.sockets import HostListener, bind_host, inherited_for
from netbird_proxy.listening.tls import ServerTls
from netbird_proxy.listening.tunnels import HTTP_PORT, HTTPS_PORT, InsideListener, serve_inside
from netbird_proxy.operator.admin import default_socket, served
from netbird_proxy.operator.decisions import Decisions
from netbird_proxy.operator.health import told
from netbird_proxy.operator.inspection import describe_plugins, describe_routes, dry_run
from netbird_proxy.pipeline.pipeline import Environment
from netbird_proxy.process.loading import Loaded
from netbird_proxy.process.state import open_state, proxy_id
from netbird_proxy.process.watchdog import Watchdog
from netbird_proxy.routing.apply import YIELDING, Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.sources.file.watch import FileMappings
from netbird_proxy.sources.management.absent import NoManagement
from netbird_proxy.sources.management.client import Connection, ManagementClient
from netbird_proxy.sources.management.mappings import SOURCE, LateSink, ManagementMappings
from netbird_proxy.sources.management.statuses import StatusReports
from netbird_proxy.upstreams.host_dialer import HostDialer
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.pools import Pools
from netbird_wire.extensions import Extension

log = structlog.get_logger("netbird_proxy.server")

O = TypeVar("O", bound=BaseModel)  # noqa: E741

DRAIN_MARGIN = 2.0
"""Seconds beyond `limits.drain` for those that are cut then to be observed."""
TUNNEL_STOP = 10.0
"""Seconds for tunnels to close, once nothing uses them."""


class ProxyServer:
    """Owns everything that lives as long as the process. Implements `steps.Proxy` and `admin.Inspected`."""

    def __init__(self, loaded: Loaded, *, supervisor: Supervisor | None = None) -> None:
        """Args:
        supervisor: who is told when this is ready and when it stops.
        """
        settings = loaded.settings
        self._supervisor = supervisor or Supervisor({})
        limits = settings.limits
        self._loaded = loaded
        self._settings = settings
        self.state_directory: Path = open_state(settings.state_directory)
        self.id = proxy_id(self.state_directory)
        self.version = distribution_version("netbird-proxy")
        self.domain = settings.management.domain if settings.management is not None else ""
        self.private = settings.private
        self.decisions = Decisions()
        self.revocations = RevokedSessions(count=self.count)
        self.ready = False
        self._listening = False
        self._stopping = False
        self._health: Sequence[Address] = ()
        self._counters: Counter[str] = Counter()
        self._options = {type(section): section for section in loaded.options.values()}
        self._host_dialer = HostDialer()
        self._tls = ServerTls(settings.tls.certificates) if settings.tls.certificates else None
        self._watchdog = Watchdog(limits.loop_stall, count=self.count)
        self._origins = Origins()
        self._environment = Environment(timeout=limits.step_deadline, grace=limits.step_grace, count=self.count)
        self._pools = Pools(self._pool_for, grace=limits.drain)
        self._compiler = Compiler(
            loaded.hooks,
            self,
            self._pools,
            self._environment,
            cookies=loaded.hooks.cookies,
            observers=[("core", self.decisions.record)],
            upgrade_idle=limits.upgrade_idle,
        )
        sources = [SOURCE] if settings.management is not None else []
        sources += [YIELDING] if settings.mappings_file is not None else []
        self.routing = Routing(self._compiler, limit=limits.services, count=self.count, sources=sources)
        self._app = ReverseProxy(
            self.routing,
            recognizes=self._origins.recognizes,
            notes=loaded.hooks.notes,
            revalidate=limits.revalidate,
            before_all=self._on_timer,
        )
        self._listeners: list[HostListener] = []
        self._inside: dict[AccountId, InsideListener] = {}
        # Accounts, mappings and client know one another, so the stream's sink and the map's listener are bound late.
        self._statuses: StatusReports
        self._sink = LateSink()
        self._may_connect = asyncio.Event()
        self._client = self._management_client() if settings.management is not None else None
        management: ProxyPeers = self._client or NoManagement()
        self._management = management
        self._accounts = Accounts(
            loaded.hooks,
            management,
            self.state_directory,
            listening=self._listening_inside if settings.private else None,
            on_change=self._on_account,
            on_map=lambda account: self._app.exchanges.revalidate(account=account),
            count=self.count,
        )
        self._statuses = StatusReports(management, self.count)
        if self._client is not None:
            self._sink.mappings = ManagementMappings(
                loaded.codec,
                self.routing,
                self._accounts,
                self._client.tokens,
                self._statuses,
                self._app.exchanges,
                self.revocations,
                private=self.private,
                has_certificate=lambda host: self._tls is not None and self._tls.covers(host),
            )
        self._file = None
        if settings.mappings_file is not None:
            self._file = FileMappings(settings.mappings_file, loaded.codec, self.routing)

    def _management_client(self) -> ManagementClient:
        management, limits = self._settings.management, self._settings.limits
        assert management is not None  # noqa: S101 - the caller saw to it
        connection = Connection(
            url=management.url,
            token=management.read_token(),
            proxy_id=self.id,
            version=self.version,
            domain=self.domain,
            allow_insecure=management.allow_insecure,
            roots=management.roots,
            rpc_timeout=limits.rpc_timeout,
            batch_watchdog=limits.batch_watchdog,
            silence=limits.management_silence,
            patience=limits.management_patience,
        )
        codec = self._loaded.codec
        return ManagementClient(
            connection, lambda: codec.capabilities(private=self.private), self._sink, count=self.count
        )

    # Life

    async def run(self) -> int:
        """Serve until a signal asks to stop. The exit code: 0 after a stop that was asked for."""
        calm_collector()
        self._take_descriptors()
        with on_signals() as shutdown:
            await self.serve(shutdown)
        return 0

    def _take_descriptors(self) -> None:
        limits = self._settings.limits
        wanted = limits.connections * len(self._settings.listen) + limits.in_flight + 256
        if (granted := raise_limit()) < wanted:
            why = "not all of limits.connections can be open at once"
            log.warning("descriptors.few", granted=granted, wanted=wanted, reason=why)

    async def serve(self, shutdown: Shutdown) -> None:
        """Start, serve until `shutdown` is asked, drain, stop.

        Raises:
            SettingsError: an address or socket cannot be had.
            PluginFailed: a plugin could not start, or its background work failed.
        """
        self._warn()
        health = self._settings.health
        try:
            # The stream ends last: management takes no word, such as plugins' last log entries, of a proxy without one.
            async with (
                self._connected(),
                self._loaded.hooks.running(self),
                served(self, self._admin_socket()),
                told(self, health.listen, metrics=health.metrics) as self._health,
            ):
                try:
                    with self._watchdog.watching():
                        await self._serve(shutdown)
                finally:
                    self._pools.close()
        except BaseExceptionGroup as group:
            # Task groups wrap what passes through them; who started us reads the one thing that went wrong.
            if isinstance(cause := _only(group), ProxyError):
                raise cause from cause.__cause__
            raise
        log.info("proxy.stopped", reason=shutdown.reason)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        """The stream of mappings, from when `_serve` lets it begin until this is left."""
        if self._client is None:
            yield
            return
        try:
            async with asyncio.TaskGroup() as group:
                stream = group.create_task(self._stream(self._client), name="mapping stream")
                yield
                stream.cancel()
        finally:
            await self._client.close()

    async def _stream(self, client: ManagementClient) -> None:
        await self._may_connect.wait()
        await client.run()

    async def _serve(self, shutdown: Shutdown) -> None:
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(self._app.exchanges.run(), name="open exchanges"),
                group.create_task(self._supervisor.keep_alive(), name="signs of life"),
            ]
            starting: asyncio.Task[None] | None = None
            try:
                await self._bind_listeners()
                if self._client is not None:
                    self._may_connect.set()
                    background.append(group.create_task(self._statuses.run(), name="status reports"))
                if self._file is not None:
                    self._file.start()
                    background.append(group.create_task(self._file.run(), name="mappings file"))
                await self._accounts.run(self, group)
                starting = group.create_task(self._begin(), name="start")
                reason = await shutdown.wait()
                log.info("proxy.stopping", reason=reason)
            finally:
                self.ready, self._stopping = False, True
                if starting is not None:  # nothing is opened from now on
                    starting.cancel()
                self._supervisor.stopping("open exchanges have their time to end")
                await self._drain(shutdown)
                await self._sink.close()
                await shutdown.drain(self._accounts.stop(), timeout=TUNNEL_STOP)
                for task in background:
                    task.cancel()

    async def _begin(self) -> None:
        """Open the host listeners once every source's first snapshot is in force, and report that this is ready.

        Where a source is longer away than `startup_timeout`, the listeners open without it: unknown hosts get 503. With
        a mappings file the proxy is ready then, without one it is so when it has something to serve.
        """
        try:
            async with asyncio.timeout(self._settings.limits.startup_timeout):
                await self.routing.complete()
        except TimeoutError:
            log.warning("proxy.incomplete", awaited=self.routing.awaited, reason="no mappings came in time")
        for listener in self._listeners:
            listener.open()
        self._listening = True
        if self._file is None:
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(self._supervisor.starting("waiting for the first mappings"))
                await self.routing.complete()
                asking.cancel()
        self.ready = True
        log.info(
            "proxy.ready",
            id=self.id,
            version=self.version,
            listening=[str(listener.address) for listener in self._listeners],
            admin=str(self._admin_socket()),
            plugins=[plugin.id for plugin in self._loaded.hooks.plugins],
        )
        self._supervisor.ready(f"listening on {', '.join(map(str, self.listening_addresses()))}")

    def _warn(self) -> None:
        for name in self._loaded.ignored:
            log.warning("settings.ignored", name=name, reason="this proxy has no such setting")
        url = self._settings.management.url if self._settings.management is not None else ""
        if url.startswith("http://") and not _is_loopback(url):
            log.warning("management.insecure", url=url, reason="the proxy's token travels in the clear")

    def _admin_socket(self) -> Path:
        return self._settings.admin.socket or default_socket(self.id)

    async def _bind_listeners(self) -> None:
        try:
            handed_over = inherited_sockets()
        except ValueError as exc:
            raise SettingsError(f"socket activation: {exc}") from exc
        for listen in self._settings.listen:
            scheme = "https" if listen.tls else "http"
            tls = self._tls if listen.tls else None
            inherited = inherited_for(listen.address, handed_over)
            listening: list[socket.socket | None] = [*inherited] or [None]
            for one in listening:
                connections = self._connections(f"{scheme} {listen.address}", tls_ahead=listen.tls_ahead)
                self._listeners.append(await bind_host(connections, listen.address, tls=tls, inherited=one))
            handed_over = [one for one in handed_over if one not in inherited]
        if handed_over:
            # It would take connections that nobody ever accepts.
            names = ", ".join(str(one.getsockname()) for one in handed_over)
            raise SettingsError(f"socket activation: no [[listen]] address is that of the handed-over socket {names}")

    async def _drain(self, shutdown: Shutdown) -> None:
        """Take no more connections, anywhere; then let what is open end within the bound, and cut what is left."""
        listeners: list[HostListener | InsideListener] = [*self._listeners, *self._inside.values()]
        bound = self._settings.limits.drain
        for listener in listeners:
            listener.close()
        await shutdown.drain(_all(listener.drain(bound) for listener in listeners), timeout=bound + DRAIN_MARGIN)
        self._listeners = []

    @asynccontextmanager
    async def _listening_inside(self, account: AccountId, tunnel: Tunnel) -> AsyncIterator[InboundListeners]:
        """The listeners in an account's tunnel, for as long as it is up."""
        connections = self._connections(f"tunnel {account}", account=account, tunnel=tunnel)
        listener = await serve_inside(connections, tunnel, tls=self._tls)
        self._inside[account] = listener
        try:
            yield InboundListeners(listener.address, HTTP_PORT, HTTPS_PORT if listener.https else None)
        finally:
            del self._inside[account]
            listener.close()
            await listener.drain(0)  # when the process stops, they have had their time

    def _connections(
        self,
        name: str,
        *,
        account: AccountId | None = None,
        tunnel: Tunnel | None = None,
        tls_ahead: bool = False,
    ) -> Connections:
        return Connections(
            self._app,
            origins=self._origins,
            listener=name,
            limits=self._listen_limits(),
            account=account,
            tunnel=tunnel,
            tls_ahead=tls_ahead,
            is_front=lambda peer: self._app.trusted is not None and peer in self._app.trusted,
            count=self.count,
            log=log,
        )

    def _listen_limits(self) -> ListenLimits:
        limits = self._settings.limits
        return ListenLimits(
            connections=limits.connections,
            client_connections=max(1, round(limits.connections * limits.connections_share)),
            head_timeout=limits.head_timeout,
            head_bytes=limits.head_bytes,
            head_lines=limits.head_lines,
            idle_timeout=limits.keep_alive,
            body_idle=limits.body_idle,
            min_rate=limits.min_rate,
            min_rate_grace=limits.min_rate_grace,
            write_timeout=limits.write_timeout,
            half_close_timeout=limits.half_close,
            linger_timeout=limits.linger,
        )

    def _on_account(self, state: AccountState) -> None:
        if self._sink.mappings is not None:
            self._sink.mappings.on_account(state)

    def _on_timer(self) -> None:
        """Where management tells of no changes, what is cached may not outlive the timer either.

        While it is away, the cache's own lifetime holds: nobody could be asked.
        """
        if (
            self._client is not None
            and self._client.connected
            and Extension.REVALIDATIONS not in self._client.extensions
        ):
            self._accounts.raise_generations()

    def _pool_for(self, upstream: Upstream, dialer: Dialer) -> UpstreamPool:
        limits = self._settings.limits
        if limits.max_dial_timeout is not None:
            wanted = upstream.dial_timeout or limits.dial_timeout
            upstream = replace(upstream, dial_timeout=min(wanted, limits.max_dial_timeout))
        return UpstreamPool(
            upstream,
            dialer,
            dial_timeout=limits.dial_timeout,
            head_timeout=limits.upstream_head,
            idle_timeout=limits.upstream_idle,
            max_idle=limits.upstream_idle_connections,
            max_in_flight=limits.in_flight,
            share=limits.in_flight_share,
        )

    # netbird_proxy.api.steps.Proxy

    @property
    def management(self) -> ManagementChannel:
        return self._management

    def options(self, model: type[O]) -> O:
        found = self._options[model]
        assert isinstance(found, model)  # noqa: S101 - keyed by its own type
        return found

    def tunnel(self, account: AccountId) -> Tunnel | None:
        return self._accounts.tunnel(account)

    def account_dialer(self, account: AccountId) -> Dialer:
        return self._accounts.dialer(account)

    @property
    def exchanges(self) -> OpenExchanges:
        return self._app.exchanges

    def host_dialer(self) -> Dialer:
        return self._host_dialer

    def generation(self, account: AccountId) -> int:
        return self._accounts.generation(account)

    def listening_addresses(self) -> Sequence[Address]:
        host = [address for listener in self._listeners for address in listener.addresses]
        inside = [address for listener in self._inside.values() for address in listener.addresses]
        return [*host, *inside, *self._health]

    @property
    def knows_clients(self) -> bool:
        return True

    def trust(self, proxies: TrustedProxies | None) -> None:
        self._app.trusted = proxies

    def count(self, name: str, amount: int = 1) -> None:
        self._counters[name] += amount

    # netbird_proxy.operator.health.Watched

    @property
    def unready(self) -> str:
        if not self.ready:
            return "stopping" if self._stopping else "no mappings yet" if self._listening else "starting"
        if not self._watchdog.ready:
            return "stalled"
        if not self._environment.left_behind.ready:
            return "steps hang"
        return ""

    def numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        now = {"ready": int(not self.unready), "services": len(self.routing), "tunnels": len(self._inside)}
        now["exchanges_open"] = len(self._app.exchanges)
        if self._client is not None:
            now["management_connected"] = int(self._client.connected)
        return self._counted(), now

    # netbird_proxy.operator.admin.Inspected

    def _counted(self) -> dict[str, int]:
        lost = logs.lost_lines()
        return {**self._counters, **({"log_lines_lost": lost} if lost else {})}

    def describe_state(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "version": self.version,
            "ready": not self.unready,
            "unready": self.unready,
            "management": {
                "connected": self._client.connected,
                "state": self._client.state,
                "initial_sync_complete": self._client.initial_sync_complete,
                "extensions": sorted(self._client.extensions),
            }
            if self._client is not None
            else None,
            "mappings_file": self._file.describe() if self._file is not None else None,
            "listening": [str(listener.address) for listener in self._listeners],
            "counters": dict(sorted(self._counted().items())),
        }

    def describe_plugins(self) -> list[dict[str, Any]]:
        return describe_plugins(self._loaded.hooks.plugins)

    def describe_routes(self) -> list[dict[str, Any]]:
        return describe_routes(self.routing)

    def dry_run(self, host: str, path: str, account: str | None) -> dict[str, Any]:
        return dry_run(self.routing, host, path, account)


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(work)


def _only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _is_loopback(url: str) -> bool:
    host = url.split("://", 1)[1].rsplit(":", 1)[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")
