"""gRPC's health check, for load balancers and supervisors, on the gRPC port."""

from typing import Any, Final

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer, add_HealthServicer_to_server

from netbird_management import Management, PluginInfo, RpcService, hookimpl

SERVICES: Final = frozenset({"", "management.ProxyService", "management.ManagementService"})
"""The services that clients may check; "" is the whole process."""


class Health:
    """The health check, which needs no token: its response reveals only that the host runs."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(version="1", summary="gRPC's health check, for load balancers and supervisors")

    @hookimpl
    def rpc(self, management: Management) -> list[RpcService]:
        return [RpcService(_Checked(), add_HealthServicer_to_server, open=True)]


class _Checked(HealthServicer):
    """The health service without `Watch`, whose streams would delay every stop. Clients accept UNIMPLEMENTED for it."""

    async def Check(self, request: HealthCheckRequest, context: Any) -> HealthCheckResponse:  # noqa: N802
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return HealthCheckResponse(status=HealthCheckResponse.SERVING)
