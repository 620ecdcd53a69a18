"""Settings of one's own in what proxies get; `examples/plugins/proxy/restrict.py` reads them there."""

from __future__ import annotations

from netbird_management import PluginInfo, Service, hookimpl
from netbird_wire.proxy_service_pb2 import ProxyMapping

FIRST, LAST = 8, 18


class OfficeHours:
    """Services whose name begins with `office` are open in office hours."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="some services are open in office hours")

    @hookimpl
    def build_mapping(self, service: Service, mapping: ProxyMapping) -> None:
        if service.name.startswith("office"):
            mapping.plugin_settings["office_hours"].update({"first": FIRST, "last": LAST})
