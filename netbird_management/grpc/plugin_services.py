"""The gRPC services that plugins bring, judged before anything listens."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc

from netbird_management.plugins.hooks import HookError
from netbird_management.plugins.steps import RpcService

CORE: Final = frozenset({"management.ProxyService", "management.ManagementService"})


@dataclass(frozen=True, slots=True)
class PluginServices:
    """What is added to the server, and which of it anybody may call."""

    handlers: tuple[grpc.GenericRpcHandler, ...] = ()
    open: frozenset[str] = frozenset()


class _Collecting:
    """Stands where the generated code expects a server, so that what it adds can be judged first."""

    def __init__(self) -> None:
        self.handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self.handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """The same methods once more, for a shorter way through gRPC, which interceptors do without."""


def plugin_services(given: Iterable[tuple[str, RpcService]]) -> PluginServices:
    """Raises `HookError` for what adds nothing, and for a service whose name somebody has."""
    owners: dict[str, str] = dict.fromkeys(CORE, "the host itself")
    handlers: list[grpc.GenericRpcHandler] = []
    open_services: set[str] = set()
    for plugin, service in given:
        collecting = _Collecting()
        try:
            service.add(service.servicer, collecting)
        except Exception as error:
            raise HookError(plugin, "rpc", f"adding raised {type(error).__name__}: {error}") from error
        if not collecting.handlers:
            raise HookError(plugin, "rpc", "adding added nothing: give the generated function that adds the service")
        for handler in collecting.handlers:
            if not isinstance(handler, grpc.ServiceRpcHandler):
                raise HookError(plugin, "rpc", f"added {type(handler).__name__}, which does not say its service's name")
            name = handler.service_name()
            if name in owners:
                raise HookError(plugin, "rpc", f"service {name} belongs to {owners[name]} already")
            owners[name] = plugin
            handlers.append(handler)
            if service.open:
                open_services.add(name)
    return PluginServices(tuple(handlers), frozenset(open_services))
