"""Adds a plugin's own settings to mappings; `examples/plugins/proxy/restrict.py` reads them on the proxy."""

from __future__ import annotations

from netbird_management import PluginInfo, Service, hookimpl
from netbird_wire.proxy_service_pb2 import ProxyMapping

FIRST, LAST = 8, 18


class OfficeHours:
    """Limits services whose name begins with `office` to office hours."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="some services are open in office hours")

    @hookimpl
    def build_mapping(self, service: Service, mapping: ProxyMapping) -> None:
        if service.name.startswith("office"):
            mapping.plugin_settings["office_hours"].update({"first": FIRST, "last": LAST})
