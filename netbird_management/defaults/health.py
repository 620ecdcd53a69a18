"""gRPC's own health check, for load balancers and supervisors, on the port of proxies and peers."""

from typing import Any, Final

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer, add_HealthServicer_to_server

from netbird_management import Management, PluginInfo, RpcService, hookimpl

SERVICES: Final = frozenset({"", "management.ProxyService", "management.ManagementService"})
"""What may be asked about; "" is the whole process."""


class Health:
    """Anybody may ask: the answer says no more than that there is one."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(version="1", summary="gRPC's health check, for load balancers and supervisors")

    @hookimpl
    def rpc(self, management: Management) -> list[RpcService]:
        return [RpcService(_Checked(), add_HealthServicer_to_server, open=True)]


class _Checked(HealthServicer):
    """`Watch` is not there, which clients of it take for "no news": a stream would only hold up every stop."""

    async def Check(self, request: HealthCheckRequest, context: Any) -> HealthCheckResponse:  # noqa: N802
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return HealthCheckResponse(status=HealthCheckResponse.SERVING)
