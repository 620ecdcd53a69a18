"""The gRPC services of plugins, validated before the host listens."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc

from netbird_management.plugins.hooks import HookError
from netbird_management.plugins.steps import RpcService

_log = logging.getLogger(__name__)

CORE: Final = frozenset({"management.ProxyService", "management.ManagementService"})


@dataclass(frozen=True, slots=True)
class PluginServices:
    """The handlers to add to the server. `names` are the names of all services, `open` those of the services that need
    no proxy's token, and `stops` the functions to call when the host begins to stop, with their plugins."""

    handlers: tuple[grpc.GenericRpcHandler, ...] = ()
    names: frozenset[str] = frozenset()
    open: frozenset[str] = frozenset()
    stops: tuple[tuple[str, Callable[[], object]], ...] = ()

    def stop(self) -> None:
        """Tell every service that the host begins to stop."""
        for plugin, stop in self.stops:
            try:
                stop()
            except Exception:
                _log.exception("plugin.stop_failed", extra={"plugin": plugin})


class _Collecting:
    """Collects the handlers that generated code adds to a server, so that they can be validated first."""

    def __init__(self) -> None:
        self.handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self.handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Ignores the methods: generated code registers them a second time, for a fast path without interceptors."""


def plugin_services(given: Iterable[tuple[str, RpcService]]) -> PluginServices:
    """Raises `HookError` for a service without handlers, and for a name that the host or another plugin uses."""
    owners: dict[str, str] = dict.fromkeys(CORE, "the host")
    handlers: list[grpc.GenericRpcHandler] = []
    open_services: set[str] = set()
    stops: list[tuple[str, Callable[[], object]]] = []
    for plugin, service in given:
        collecting = _Collecting()
        try:
            service.add(service.servicer, collecting)
        except Exception as error:
            raise HookError(plugin, "rpc", f"add raised {type(error).__name__}: {error}") from error
        if not collecting.handlers:
            raise HookError(plugin, "rpc", "add registered nothing: it must be the generated add_…_to_server function")
        for handler in collecting.handlers:
            if not isinstance(handler, grpc.ServiceRpcHandler):
                raise HookError(
                    plugin, "rpc", f"{type(handler).__name__} is not supported: a handler must name its service"
                )
            name = handler.service_name()
            if name in owners:
                raise HookError(plugin, "rpc", f"service {name} is already served by {owners[name]}")
            owners[name] = plugin
            handlers.append(handler)
            if service.open:
                open_services.add(name)
        if service.stop is not None:
            stops.append((plugin, service.stop))
    return PluginServices(tuple(handlers), frozenset(owners) - CORE, frozenset(open_services), tuple(stops))
