"""The service for proxies."""

from ipaddress import IPv6Address
from typing import Any, Final

import grpc

from netbird_management.grpc.access_log import AccessLogs
from netbird_management.grpc.connections import Connection, Connections
from netbird_management.grpc.errors import Refused
from netbird_management.grpc.interceptors import AuthenticatedProxy, calling_proxy
from netbird_management.grpc.login_service import Logins
from netbird_management.grpc.mapping_stream import MappingStreams
from netbird_management.grpc.status_writer import StatusWriter
from netbird_management.grpc.tunnel_peers import TunnelPeers
from netbird_management.model.domains import fold, fold_address
from netbird_management.model.errors import InvalidArgument, PermissionDenied
from netbird_management.model.ids import AccountId, ServiceId
from netbird_management.model.services import InboundListener, Status
from netbird_management.operations.peers import create_proxy_peer
from netbird_management.operations.statuses import Report, set_certificate_issued
from netbird_management.secrets.one_time import verify
from netbird_management.store.state import State
from netbird_wire.proxy_service_pb2 import (
    PROXY_STATUS_ACTIVE,
    PROXY_STATUS_CERTIFICATE_FAILED,
    PROXY_STATUS_CERTIFICATE_PENDING,
    PROXY_STATUS_PENDING,
    PROXY_STATUS_TUNNEL_NOT_CREATED,
    AuthenticateRequest,
    AuthenticateResponse,
    CreateProxyPeerRequest,
    CreateProxyPeerResponse,
    GetMappingUpdateRequest,
    GetOIDCURLRequest,
    GetOIDCURLResponse,
    SendAccessLogRequest,
    SendAccessLogResponse,
    SendStatusUpdateRequest,
    SendStatusUpdateResponse,
    ValidateSessionRequest,
    ValidateSessionResponse,
    ValidateTunnelPeerRequest,
    ValidateTunnelPeerResponse,
)
from netbird_wire.proxy_service_pb2_grpc import ProxyServiceServicer

_STATUSES: Final[dict[int, Status]] = {
    PROXY_STATUS_PENDING: Status.PENDING,
    PROXY_STATUS_ACTIVE: Status.ACTIVE,
    PROXY_STATUS_TUNNEL_NOT_CREATED: Status.TUNNEL_NOT_CREATED,
    PROXY_STATUS_CERTIFICATE_PENDING: Status.CERTIFICATE_PENDING,
    PROXY_STATUS_CERTIFICATE_FAILED: Status.CERTIFICATE_FAILED,
}


class ProxyService(ProxyServiceServicer):
    """`management.ProxyService`. `interceptors.Edge` checks the tokens, and turns exceptions into statuses: a method
    that this class does not implement ends with UNIMPLEMENTED."""

    def __init__(
        self,
        state: State,
        connections: Connections,
        streams: MappingStreams,
        tunnel_peers: TunnelPeers,
        access_logs: AccessLogs,
        statuses: StatusWriter,
        logins: Logins,
    ) -> None:
        self._state = state
        self._connections = connections
        self._streams = streams
        self._tunnel_peers = tunnel_peers
        self._access_logs = access_logs
        self._statuses = statuses
        self._logins = logins

    # grpc.aio also serves a coroutine that reads and writes by its context, which can be awaited to its end where an
    # abandoned generator cannot.
    async def SyncMappings(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        await self._streams.serve(calling_proxy(), context)

    async def GetMappingUpdate(self, request: GetMappingUpdateRequest, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        await self._streams.serve_one_way(calling_proxy(), request, context)

    async def ValidateTunnelPeer(  # noqa: N802
        self, request: ValidateTunnelPeerRequest, context: Any
    ) -> ValidateTunnelPeerResponse:
        return await self._tunnel_peers.validate(request, calling_proxy())

    async def Authenticate(self, request: AuthenticateRequest, context: Any) -> AuthenticateResponse:  # noqa: N802
        return await self._logins.authenticate(request, calling_proxy())

    async def GetOIDCURL(self, request: GetOIDCURLRequest, context: Any) -> GetOIDCURLResponse:  # noqa: N802
        return await self._logins.oidc_url(request, calling_proxy())

    async def ValidateSession(  # noqa: N802
        self, request: ValidateSessionRequest, context: Any
    ) -> ValidateSessionResponse:
        return await self._logins.validate_session(request, calling_proxy())

    async def CreateProxyPeer(  # noqa: N802
        self, request: CreateProxyPeerRequest, context: Any
    ) -> CreateProxyPeerResponse:
        proxy = calling_proxy()
        proxy.check_account(request.account_id)
        for name in ("service_id", "account_id", "token"):
            if not getattr(request, name):
                return CreateProxyPeerResponse(success=False, error_message=f"{name} is required")
        account_id, service_id = AccountId(request.account_id), ServiceId(request.service_id)
        try:
            token = verify(self._state.vault, request.token, account_id, service_id, proxy.token.id)
            cluster = self._checked_cluster(request, proxy)
            self._check_key(request)
            await create_proxy_peer(
                self._state,
                account_id,
                key=request.wireguard_public_key,
                cluster=cluster,
                token=token,
                wireguard_endpoint=_endpoint(request.wireguard_endpoint),
                serves_dns=request.serves_dns,
            )
        except PermissionDenied as error:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, error.message) from error
        return CreateProxyPeerResponse(success=True)

    def _checked_cluster(self, request: CreateProxyPeerRequest, proxy: AuthenticatedProxy) -> str:
        """The folded cluster address. Raises `InvalidArgument` if it is neither the service's nor the proxy's.

        Clients would otherwise learn the peer as a proxy of another cluster, and network maps would admit it to the
        targets there.
        """
        account = self._state.snapshots.get(request.account_id)
        service = account.services.get(ServiceId(request.service_id)) if account is not None else None
        if service is None:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "the service does not exist")
        live = [proxy.connection] if proxy.connection is not None else self._connections.of_token(proxy.token.id)
        try:
            cluster = fold_address(request.cluster)
        except ValueError as error:
            raise InvalidArgument(str(error)) from error
        if cluster not in {service.proxy_cluster, *(connection.registration.cluster for connection in live)}:
            raise InvalidArgument(f"cluster must be the proxy's own, not {cluster}")
        return cluster

    def _check_key(self, request: CreateProxyPeerRequest) -> None:
        registered = self._state.snapshots.by_peer_key(request.wireguard_public_key)
        if registered is None:
            return
        _, peer = registered
        if peer.account_id != request.account_id or peer.proxy is None:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "this WireGuard key belongs to another peer")

    async def SendStatusUpdate(  # noqa: N802
        self, request: SendStatusUpdateRequest, context: Any
    ) -> SendStatusUpdateResponse:
        proxy = calling_proxy()
        proxy.check_account(request.account_id)
        if not request.service_id or not request.account_id:
            raise InvalidArgument("service_id and account_id are required")
        account = self._state.snapshots.get(request.account_id)
        service_id = ServiceId(request.service_id)
        if account is None or service_id not in account.services:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"service {request.service_id} not found")
        for connection in self._reporting(proxy, service_id):
            await self._statuses.write(
                Report(
                    service_id,
                    connection.proxy_id,
                    _STATUSES.get(request.status, Status.ERROR),
                    error_message=request.error_message,
                    withheld=connection.withheld.get(service_id, ""),
                    inbound_listener=_listener(request),
                )
            )
        if request.certificate_issued:
            await set_certificate_issued(self._state, account.account.id, service_id)
        return SendStatusUpdateResponse()

    def _reporting(self, proxy: AuthenticatedProxy, service_id: ServiceId) -> list[Connection]:
        """The connections that a report about a service is from. A late report about a service that the proxy no longer
        has is from none, as it would not describe the current state."""
        if proxy.connection is not None:
            return [proxy.connection] if service_id in proxy.connection.sent else []
        return self._connections.of_unnamed(proxy.call, proxy.token.id, service_id)

    async def SendAccessLog(self, request: SendAccessLogRequest, context: Any) -> SendAccessLogResponse:  # noqa: N802
        proxy = calling_proxy()
        logs = [request.log] if request.HasField("log") else []
        logs += request.logs
        for log in logs:
            proxy.check_account(log.account_id)
        self._access_logs.take(logs)
        return SendAccessLogResponse()


def _endpoint(text: str) -> str:
    """The normalized `host:port`, or "". It is written to stock clients' configuration files, where a line break would
    begin another setting. Raises `InvalidArgument`."""
    if not text:
        return ""
    host, _, port = text.rpartition(":")
    try:
        if not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
            raise ValueError(port)
        if host.startswith("[") and host.endswith("]"):
            return f"[{IPv6Address(host[1:-1])}]:{int(port)}"
        return f"{fold(host)}:{int(port)}"
    except ValueError as error:
        raise InvalidArgument("wireguard_endpoint must be host:port") from error


def _listener(request: SendStatusUpdateRequest) -> InboundListener | None:
    if not request.HasField("inbound_listener"):
        return None
    listener = request.inbound_listener
    return InboundListener(listener.tunnel_ip[:255], listener.https_port, listener.http_port)
