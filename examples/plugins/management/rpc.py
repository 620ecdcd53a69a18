"""A gRPC service for proxies, beside the host's own."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue

from netbird_management import Management, PluginInfo, RpcService, hookimpl


class WhoAmI:
    """Returns the account of the calling proxy's token; `*` for all accounts."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="tells proxies which account they serve")

    @hookimpl
    def rpc(self, management: Management) -> list[RpcService]:
        return [RpcService(_Answers(management), add_to_server)]


class _Answers:
    def __init__(self, management: Management) -> None:
        self._management = management

    async def account(self, request: Empty, context: Any) -> StringValue:
        return StringValue(value=self._management.proxy_caller().account_id or "*")


def add_to_server(servicer: _Answers, server: Any) -> None:
    """Register the service. A service with a .proto file has a generated function for this."""
    methods = {
        "Account": grpc.unary_unary_rpc_method_handler(
            servicer.account, request_deserializer=Empty.FromString, response_serializer=StringValue.SerializeToString
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("example.WhoAmI", methods),))
