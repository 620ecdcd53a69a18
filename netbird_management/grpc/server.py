"""The gRPC port: both of NetBird's services, and the work that goes on beside them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
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
from netbird_management.grpc.login_service import Logins
from netbird_management.grpc.management_service import ManagementService
from netbird_management.grpc.mapping_stream import HEARTBEAT_SECONDS, MappingStreams
from netbird_management.grpc.mappings import Mappings
from netbird_management.grpc.peer_streams import QUIET_SECONDS, PeerStreams
from netbird_management.grpc.plugin_services import PluginServices, plugin_services
from netbird_management.grpc.proxy_service import ProxyService
from netbird_management.grpc.recorder import Recorder
from netbird_management.grpc.status_writer import StatusWriter
from netbird_management.grpc.tunnel_peers import TunnelPeers
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
"""Under way at once, streams of proxies and peers among them; one more is answered RESOURCE_EXHAUSTED."""
HANDSHAKE_MS = 10_000
_log = logging.getLogger(__name__)


class Host(Management, Protocol):
    """The running host, as far as it is needed here."""

    @property
    def state(self) -> State: ...

    @property
    def hooks(self) -> Hooks: ...

    @property
    def maps(self) -> NetworkMaps: ...


@dataclass(frozen=True, slots=True)
class Timing:
    """In seconds: between looks at a proxy's token, how long an agent's map waits for another change, after how long a
    silence a proxy or a peer is asked for a sign of life, within how long it must give one, and within how long the
    first message of a call must come."""

    heartbeat: float = HEARTBEAT_SECONDS
    quiet: float = QUIET_SECONDS
    silence: float = 30.0
    patience: float = 10.0
    request: float = REQUEST_SECONDS


@asynccontextmanager
async def serve_grpc(
    host: Host,
    listener: Listener,
    *,
    grace: float = 10.0,
    signal: str = "",
    timing: Timing | None = None,
    shutdown: Shutdown | None = None,
    sign_on: SignOn | None = None,
    services: PluginServices | None = None,
    calls: int = CALLS,
    trusted_proxies: Sequence[Network] = (),
    certificate: ReloadedCertificate | None = None,
    log_entries: int = QUOTA_ENTRIES,
) -> AsyncIterator[int]:
    """Serves proxies and peers, and yields the bound port.

    On leaving, streams are told to go; they have `grace` seconds to write down that they went, so the state must live
    longer than this; whoever asks `shutdown` twice ends that time.

    `signal` is `host:port` of the signal server that peers are told of; without one they are told
    this server's own address, which is enough for proxies of ours and for nobody else. `services` are the plugins' (by
    default what `hooks` bring). `certificate` is the one
    of `listener` where it is read again later. Raises `OSError` if the address cannot be had, `SettingsError` if a
    certificate cannot be read.
    """
    state, hooks, timing = host.state, host.hooks, timing or Timing()
    connections, streams, recorder, statuses = Connections(), PeerStreams(), Recorder(state), StatusWriter(state)
    mappings = Mappings(state, hooks, connections, recorder)
    access_logs = AccessLogs(state, quota=log_entries, record=hooks.record_access)
    services = plugin_services(hooks.rpc(host)) if services is None else services
    edge = Edge(state, connections, PEERS | services.open, trusted=trusted_proxies, patience=timing.request)
    logins = Logins(state, SessionGates(hooks, host), sign_on)
    server = _server(edge, timing, calls)
    port = _bind(server, listener, certificate or listener.judge("grpc"))
    add_ProxyServiceServicer_to_server(
        ProxyService(
            state,
            connections,
            MappingStreams(state, connections, mappings, heartbeat=timing.heartbeat, patience=timing.request),
            TunnelPeers(state, hooks, host, recorder),
            access_logs,
            statuses,
            logins,
        ),
        server,
    )
    add_ManagementServiceServicer_to_server(
        ManagementService(
            state,
            host.maps,
            streams,
            signal=signal or str(replace(listener.address, port=port)),
            signal_tls=listener.certificate is not None,
            quiet=timing.quiet,
        ),
        server,
    )
    server.add_generic_rpc_handlers(services.handlers)
    with state.snapshots.subscribe() as for_proxies, state.snapshots.subscribe() as for_peers:
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(_tell_proxies(mappings, logins, host.maps, for_proxies)),
                tasks.create_task(streams.follow(for_peers)),
                tasks.create_task(recorder.run()),
                tasks.create_task(access_logs.run()),
                tasks.create_task(statuses.run()),
            ]
            try:
                await server.start()
                _log.info("grpc.listening", extra={"port": port})
                yield port
            finally:
                ending = _end(server, connections, streams, grace)
                if not await (shutdown or Shutdown()).drain(ending, timeout=grace + 1):
                    await server.stop(None)
                for task in background:
                    task.cancel()
    await access_logs.flush()


async def _end(server: grpc.aio.Server, connections: Connections, streams: PeerStreams, grace: float) -> None:
    """New calls are refused from the first moment on; streams are told to go, other calls may finish."""
    stopping = Refused(grpc.StatusCode.UNAVAILABLE, "management is stopping")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.stop(grace))
        tasks.create_task(connections.end_all(stopping, grace))
        tasks.create_task(streams.end_all(stopping, grace))


def _server(edge: Edge, timing: Timing, calls: int) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=(edge,),
        maximum_concurrent_rpcs=calls,
        options=(
            ("grpc.max_receive_message_length", PROXY_MESSAGE_BYTES),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ("grpc.so_reuseport", 0),  # a port that is taken is an error, not half of the calls
            # Agents ping as they please; a connection that does not answer ours is gone.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_time_ms", round(timing.silence * 1000)),
            # The kernel's patience for bytes, and gRPC's own for the answer: with the first alone it would be a minute.
            ("grpc.keepalive_timeout_ms", round(timing.patience * 1000)),
            ("grpc.http2.ping_timeout_ms", round(timing.patience * 1000)),
        ),
    )


def _bind(server: grpc.aio.Server, listener: Listener, certificate: ReloadedCertificate | None) -> int:
    listener.bind("grpc").close()  # gRPC would not say why it cannot have an address
    try:
        if certificate is None:
            return server.add_insecure_port(listener.listen)

        def current() -> Any:
            return grpc.ssl_server_certificate_configuration([certificate.pem])

        credentials = grpc.dynamic_ssl_server_credentials(current(), current)  # asked at each handshake
        return server.add_secure_port(listener.listen, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {listener.listen} for gRPC: {error}") from error


async def _tell_proxies(mappings: Mappings, logins: Logins, maps: NetworkMaps, changes: Changes) -> None:
    async for change in changes:
        mappings.tell(change)
        before = change.before.services if change.before is not None else {}
        for service_id in {*before, *change.touched.services}:
            if change.after is None or service_id not in change.after.services:
                logins.forget(service_id)
        if change.after is None:
            maps.forget(change.account_id)
