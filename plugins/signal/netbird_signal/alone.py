"""The signal server as a process of its own: its port, limits of connections and calls, health check and end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer, add_HealthServicer_to_server

from netbird_host.certificates import CertificateError, WatchedCertificate
from netbird_host.sources import Network, nearest_client, source_of
from netbird_signal.events import keep_reporting, report_contested
from netbird_signal.exchange import MESSAGE_BYTES, Exchange, Limits
from netbird_signal.service import READ_SECONDS, SignalService
from netbird_signal.sources import peer_address
from netbird_wire.signalexchange_pb2 import DESCRIPTOR, EncryptedMessage

SERVICE: Final = DESCRIPTOR.services_by_name["SignalExchange"].full_name
SENDING: Final = 4_000
"""Maximum number of calls beside the registered streams; beyond it RESOURCE_EXHAUSTED."""
CONNECTIONS: Final = 1_000
"""Maximum number of connections beside one for each registered stream; beyond it new ones are closed."""
SENDING_OF_SOURCE: Final = 500
"""Maximum number of calls of one source that wait for their message; beyond it RESOURCE_EXHAUSTED."""
REQUEST_SECONDS: Final = 10.0
"""Maximum time until the message of a call; on expiry DEADLINE_EXCEEDED."""
IDLE_MS: Final = 60_000
"""Time after which a connection without a stream is closed, in milliseconds."""
GRACE: Final = 5.0
"""Maximum time in seconds for calls to end when the process stops."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Alone:
    """The settings of a signal server that runs alone.

    Attributes:
        listen: `host:port`; port 0 picks one.
        certificate, key: PEM files; with them the port has TLS. They are read again when they change.
        trusted: networks of reverse proxies, whose `x-forwarded-for` contains the client's address.
        silence, patience: time without data after which the server pings a connection, and time for the answer; on
            expiry the connection is closed. In seconds.
        request: maximum time until the message of a call, in seconds; on expiry DEADLINE_EXCEEDED.
        read: maximum time until a client takes a message, in seconds; on expiry its stream ends.
    """

    listen: str
    certificate: Path | None = None
    key: Path | None = None
    trusted: Sequence[Network] = ()
    limits: Limits = field(default_factory=Limits)
    silence: float = 30.0
    patience: float = 10.0
    request: float = REQUEST_SECONDS
    read: float = READ_SECONDS


@dataclass(frozen=True, slots=True)
class Running:
    """A server that listens: its port and its rules, with their counters."""

    port: int
    exchange: Exchange


@asynccontextmanager
async def serve_alone(settings: Alone) -> AsyncIterator[Running]:
    """Serve until the context is left; then streams end at once, and calls within `GRACE`.

    Raises:
        OSError: the address cannot be bound.
        ValueError: the certificate and its key cannot be read, or are no pair.
    """
    exchange = Exchange(settings.limits, asyncio.get_running_loop().time, on_contested=report_contested)
    source = _SourceOf(settings.trusted)
    service = SignalService(exchange, source, patience=settings.read)
    health = _Health()
    server = grpc.aio.server(
        maximum_concurrent_rpcs=settings.limits.streams + SENDING,
        options=(
            ("grpc.max_receive_message_length", 2 * MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),  # two processes must not share the port
            ("grpc.server_handshake_timeout_ms", 10_000),
            ("grpc.max_connection_idle_ms", IDLE_MS),
            ("grpc.max_allowed_incoming_connections", settings.limits.streams + CONNECTIONS),
            # All agents come back at the same moment after a restart. gRPC cancels them above 1,000 by default.
            ("grpc.server.max_pending_requests", settings.limits.streams),
            ("grpc.server.max_pending_requests_hard_limit", settings.limits.streams + SENDING),
            # Agents ping at any rate. A connection that does not answer the server's pings is closed.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_time_ms", round(settings.silence * 1000)),
            ("grpc.keepalive_timeout_ms", round(settings.patience * 1000)),
            ("grpc.http2.ping_timeout_ms", round(settings.patience * 1000)),
        ),
    )
    add_HealthServicer_to_server(health, server)
    server.add_generic_rpc_handlers((_handlers(service, _Requests(source, settings.request)),))
    port = _bind(server, settings)
    await server.start()
    async with asyncio.TaskGroup() as tasks:
        reporting = tasks.create_task(keep_reporting(exchange))
        try:
            yield Running(port, exchange)
        finally:
            health.serving = False
            exchange.stop()
            await server.stop(GRACE)
            reporting.cancel()


class _SourceOf:
    """Returns the source of a call."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = trusted

    def __call__(self, context: Any) -> str:
        peer = peer_address(context.peer())
        lines = [value for name, value in context.invocation_metadata() or () if name == "x-forwarded-for"]
        forwarded = (line for line in lines if isinstance(line, str))
        return source_of(nearest_client(peer, forwarded, self._trusted))


class _Requests:
    """Reads the message of a unary call, in bounded time: gRPC itself waits for ever, and every wait has a place."""

    def __init__(self, source: _SourceOf, patience: float) -> None:
        self._source = source
        self._patience = patience
        self._waiting: dict[str, int] = {}

    async def read(self, context: Any) -> EncryptedMessage:
        source = self._source(context)
        waiting = self._waiting.get(source, 0)
        if waiting >= SENDING_OF_SOURCE:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls without a message")
        self._waiting[source] = waiting + 1
        try:
            async with asyncio.timeout(self._patience):
                raw = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no message arrived in time")
        finally:
            self._waiting[source] -= 1
            if not self._waiting[source]:
                del self._waiting[source]
        if raw is grpc.aio.EOF:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        try:
            return EncryptedMessage.FromString(raw)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is malformed")
            raise


def _handlers(service: SignalService, requests: _Requests) -> grpc.GenericRpcHandler:
    async def send(_stream: Any, context: Any) -> EncryptedMessage:
        return await service.Send(await requests.read(context), context)

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            # On the wire, a call with one message is a stream that ends after it.
            "Send": grpc.stream_unary_rpc_method_handler(send, None, EncryptedMessage.SerializeToString),
            "ConnectStream": grpc.stream_stream_rpc_method_handler(
                service.ConnectStream, None, EncryptedMessage.SerializeToString
            ),
        },
    )


class _Health(HealthServicer):
    """gRPC's health check, without `Watch`, whose streams would delay every stop. Clients accept UNIMPLEMENTED."""

    serving = True

    async def Check(self, request: HealthCheckRequest, context: Any) -> HealthCheckResponse:  # noqa: N802
        if request.service not in ("", SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        serving = HealthCheckResponse.SERVING if self.serving else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=serving)


def _bind(server: grpc.aio.Server, settings: Alone) -> int:
    try:
        if settings.certificate is None or settings.key is None:
            return server.add_insecure_port(settings.listen)
        pair = _Certificate(settings.certificate, settings.key)
        # gRPC keeps the last pair where the function returns None, which its types do not say.
        changed = cast("Callable[[], grpc.ServerCertificateConfiguration]", pair.changed)
        credentials = grpc.dynamic_ssl_server_credentials(pair.configuration(), changed)
        return server.add_secure_port(settings.listen, credentials)
    except CertificateError as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        raise OSError(f"cannot listen on {settings.listen}: {error}") from error


class _Certificate:
    """A certificate and its key, read again at the first handshake after their files changed."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises CertificateError: gRPC itself accepts anything, and then fails at each handshake."""
        self._pair = WatchedCertificate(certificate, key)

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([self._pair.pem])

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new pair, or None if it is unchanged or cannot be used: then the last one stays in force."""
        try:
            return self.configuration() if self._pair.refresh() else None
        except CertificateError as error:
            log.warning("signal.certificate_kept", extra={"error": str(error)})
            return None
