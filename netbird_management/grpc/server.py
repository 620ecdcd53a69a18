"""The gRPC port: NetBird's two services, those of plugins, and their background tasks."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import grpc
import grpc.aio

from netbird_host.certificates import ReloadedCertificate
from netbird_host.shutdown import Shutdown
from netbird_host.sources import Network
from netbird_management.compute.network_map import NetworkMaps
from netbird_management.grpc.access_log import QUOTA_ENTRIES, AccessLogs
from netbird_management.grpc.connections import Connections
from netbird_management.grpc.errors import Refused
from netbird_management.grpc.interceptors import PEERS, PROXY_MESSAGE_BYTES, REQUEST_SECONDS, Edge
from netbird_management.grpc.login_expiry import LoginExpiry
from netbird_management.grpc.login_service import Logins
from netbird_management.grpc.management_service import MAP_BYTES, ManagementService, refusal_of
from netbird_management.grpc.mapping_stream import HEARTBEAT_SECONDS, MappingStreams
from netbird_management.grpc.mappings import Mappings
from netbird_management.grpc.peer_configuration import PeerConfiguration
from netbird_management.grpc.peer_streams import QUIET_SECONDS, PeerStreams
from netbird_management.grpc.plugin_services import PluginServices, plugin_services
from netbird_management.grpc.proxy_service import ProxyService
from netbird_management.grpc.recorder import Recorder
from netbird_management.grpc.status_writer import StatusWriter
from netbird_management.grpc.tunnel_peers import TunnelPeers
from netbird_management.login.agent_logins import AgentLogins
from netbird_management.login.gates import SessionGates
from netbird_management.login.sign_on import SignOn
from netbird_management.model.snapshot import Changes
from netbird_management.plugins.hooks import Hooks
from netbird_management.plugins.steps import Management
from netbird_management.settings import Listener
from netbird_management.store.state import State
from netbird_wire.management_pb2_grpc import add_ManagementServiceServicer_to_server
from netbird_wire.proxy_service_pb2_grpc import add_ProxyServiceServicer_to_server

CALLS = 50_000
"""Maximum number of concurrent calls, streams of proxies and peers included; beyond it RESOURCE_EXHAUSTED."""
HANDSHAKE_MS = 10_000
_log = logging.getLogger(__name__)


class Host(Management, Protocol):
    """The parts of the running host that the gRPC port uses."""

    @property
    def state(self) -> State: ...

    @property
    def hooks(self) -> Hooks: ...

    @property
    def maps(self) -> NetworkMaps: ...


@dataclass(frozen=True, slots=True)
class Timing:
    """The intervals of the gRPC port, in seconds.

    Attributes:
        heartbeat: time between two checks of a connected proxy's token.
        quiet: time that an agent's map waits for further changes.
        silence: time without data after which the server pings a connection.
        patience: maximum time until the answer to a ping; on expiry the connection is closed.
        request: maximum time until the first message of a call; on expiry DEADLINE_EXCEEDED.
    """

    heartbeat: float = HEARTBEAT_SECONDS
    quiet: float = QUIET_SECONDS
    silence: float = 30.0
    patience: float = 10.0
    request: float = REQUEST_SECONDS


@dataclass(frozen=True, slots=True)
class _Parts:
    """The objects that the services and their background tasks share."""

    connections: Connections
    streams: PeerStreams
    recorder: Recorder
    statuses: StatusWriter
    mappings: Mappings
    access_logs: AccessLogs
    logins: Logins

    @classmethod
    def of(cls, host: Host, sign_on: SignOn | None, log_entries: int) -> "_Parts":
        state, hooks = host.state, host.hooks
        connections, recorder = Connections(), Recorder(state)
        return cls(
            connections=connections,
            streams=PeerStreams(refusal_of),
            recorder=recorder,
            statuses=StatusWriter(state),
            mappings=Mappings(state, hooks, connections, recorder),
            access_logs=AccessLogs(state, quota=log_entries, record=hooks.record_access),
            logins=Logins(state, SessionGates(hooks, host), sign_on),
        )


@asynccontextmanager
async def serve_grpc(
    host: Host,
    listener: Listener,
    *,
    grace: float = 10.0,
    announce: Callable[[int, PluginServices], PeerConfiguration] = lambda _port, _services: PeerConfiguration(),
    timing: Timing | None = None,
    shutdown: Shutdown | None = None,
    sign_on: SignOn | None = None,
    agents: AgentLogins | None = None,
    map_bytes: int = MAP_BYTES,
    services: PluginServices | None = None,
    calls: int = CALLS,
    trusted_proxies: Sequence[Network] = (),
    certificate: ReloadedCertificate | None = None,
    log_entries: int = QUOTA_ENTRIES,
    inner: Path | None = None,
    addresses: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[int]:
    """Serves proxies and peers, and yields the bound port. The state must outlive this context.

    On exit, streams end and get `grace` seconds to store that they ended; a second request to `shutdown` cuts them at
    once.

    Args:
        announce: returns the servers that management announces to peers; called with the bound port and the plugins'
            services.
        agents: users by the identity provider's tokens, with which agents log in.
        map_bytes: maximum size of a peer's map.
        services: the plugins' services; by default those that `host.hooks` returns.
        certificate: the certificate of `listener`, if it is reloadable.
        log_entries: maximum number of stored access-log entries of an account.
        inner: path of a Unix socket on which gRPC is served too, without TLS, for a port of this process that joins
            clients to it; `addresses` are these clients' addresses by gRPC's name of the peer.

    Raises:
        HookError: a plugin failed.
        OSError: the address cannot be bound.
        SettingsError: the certificate cannot be read.
    """
    timing = timing or Timing()
    parts = _Parts.of(host, sign_on, log_entries)
    services = plugin_services(host.hooks.rpc(host)) if services is None else services
    opened = PEERS | services.open
    edge = Edge(
        host.state, parts.connections, opened, trusted=trusted_proxies, patience=timing.request, addresses=addresses
    )
    server = _server(edge, timing, calls)
    port = _bind(server, listener, certificate or listener.judge("grpc"))
    if inner is not None:
        server.add_insecure_port(f"unix:{inner}")
    peers = ManagementService(
        host.state,
        host.maps,
        parts.streams,
        configuration=announce(port, services),
        agents=agents,
        quiet=timing.quiet,
        map_bytes=map_bytes,
    )
    _add_services(server, host, parts, timing, peers)
    server.add_generic_rpc_handlers(services.handlers)
    async with _background(host, parts):
        try:
            await server.start()
            _log.info("grpc.listening", extra={"port": port})
            yield port
        finally:
            services.stop()
            ending = _end(server, parts, grace)
            if not await (shutdown or Shutdown()).drain(ending, timeout=grace + 1):
                await server.stop(None)
    await parts.access_logs.flush()


def _add_services(
    server: grpc.aio.Server,
    host: Host,
    parts: _Parts,
    timing: Timing,
    peers: ManagementService,
) -> None:
    state = host.state
    proxies = ProxyService(
        state,
        parts.connections,
        MappingStreams(state, parts.connections, parts.mappings, heartbeat=timing.heartbeat, patience=timing.request),
        TunnelPeers(state, host.hooks, host, parts.recorder),
        parts.access_logs,
        parts.statuses,
        parts.logins,
    )
    add_ProxyServiceServicer_to_server(proxies, server)
    add_ManagementServiceServicer_to_server(peers, server)


@asynccontextmanager
async def _background(host: Host, parts: _Parts) -> AsyncIterator[None]:
    """Runs the services' background tasks, and cancels them on exit."""
    snapshots = host.state.snapshots
    subscribe = snapshots.subscribe
    with subscribe() as for_proxies, subscribe() as for_peers, subscribe() as for_logins:
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(_follow_changes(parts.mappings, parts.logins, host.maps, for_proxies)),
                tasks.create_task(parts.streams.follow(for_peers)),
                tasks.create_task(LoginExpiry(host.state).run(for_logins)),
                tasks.create_task(parts.recorder.run()),
                tasks.create_task(parts.access_logs.run()),
                tasks.create_task(parts.statuses.run()),
            ]
            try:
                yield
            finally:
                for task in background:
                    task.cancel()


async def _end(server: grpc.aio.Server, parts: _Parts, grace: float) -> None:
    """Refuses new calls at once, and ends the streams; other calls get `grace` seconds to finish."""
    stopping = Refused(grpc.StatusCode.UNAVAILABLE, "management is stopping")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.stop(grace))
        tasks.create_task(parts.connections.end_all(stopping, grace))
        tasks.create_task(parts.streams.end_all(stopping, grace))


def _server(edge: Edge, timing: Timing, calls: int) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=(edge,),
        maximum_concurrent_rpcs=calls,
        options=(
            ("grpc.max_receive_message_length", PROXY_MESSAGE_BYTES),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ("grpc.so_reuseport", 0),  # two processes must not share the port
            # Agents ping at any rate. A connection that does not answer the server's pings is closed.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_time_ms", round(timing.silence * 1000)),
            # The first limits unacknowledged bytes in the kernel, the second gRPC's wait for the answer.
            ("grpc.keepalive_timeout_ms", round(timing.patience * 1000)),
            ("grpc.http2.ping_timeout_ms", round(timing.patience * 1000)),
        ),
    )


def _bind(server: grpc.aio.Server, listener: Listener, certificate: ReloadedCertificate | None) -> int:
    listener.bind("grpc").close()  # gRPC does not report why an address is unavailable
    try:
        if certificate is None:
            return server.add_insecure_port(listener.listen)

        def current() -> Any:
            return grpc.ssl_server_certificate_configuration([certificate.pem])

        credentials = grpc.dynamic_ssl_server_credentials(current(), current)  # called at each handshake
        return server.add_secure_port(listener.listen, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {listener.listen} for gRPC: {error}") from error


async def _follow_changes(mappings: Mappings, logins: Logins, maps: NetworkMaps, changes: Changes) -> None:
    """Sends each commit to the proxies, and forgets the logins and maps of deleted services and accounts."""
    async for change in changes:
        mappings.send(change)
        # Only a deleted account's services are walked: any other change costs what it touched, however many stay.
        gone = set(change.touched.services)
        if change.after is None and change.before is not None:
            gone.update(change.before.services)
        for service_id in gone:
            if change.after is None or service_id not in change.after.services:
                logins.forget(service_id)
        if change.after is None:
            maps.forget(change.account_id)
