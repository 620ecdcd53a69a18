"""Closes services outside office hours, which `examples/plugins/management/build_mapping.py` sets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from netbird_proxy import ALLOW, Claim, Decision, Deny, ExchangeView, Guard, PluginInfo, RouteSpec, always, hookimpl
from netbird_wire.proxy_service_pb2 import ProxyMapping


@dataclass(frozen=True, slots=True)
class OfficeHoursSettings:
    """Hours of the day, from `first` up to but not including `last`; equal values restrict nothing."""

    first: int = 0
    last: int = 0

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        if "office_hours" not in mapping.plugin_settings:
            return cls()
        hours = mapping.plugin_settings["office_hours"]
        first, last = (int(hours.fields[name].number_value) for name in ("first", "last"))
        if not 0 <= first < last <= 24:
            raise ValueError(f"office hours from {first} to {last} are none")
        return cls(first, last)


def hour_now() -> int:
    return time.localtime().tm_hour


class OfficeHours:
    """Claims the settings as guarding, so that a proxy without this plugin refuses such a service."""

    def __init__(self, hour: Callable[[], int] = hour_now) -> None:
        self._hour = hour

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            summary="services that are open in office hours",
            claims=(Claim("plugin_settings.office_hours", guards=always),),
            settings=(OfficeHoursSettings,),
        )

    @hookimpl
    def restrict(self, route: RouteSpec) -> Guard | None:
        hours = route.settings(OfficeHoursSettings)
        if hours == OfficeHoursSettings():
            return None

        async def in_hours(_exchange: ExchangeView) -> Decision:
            hour = self._hour()
            if hours.first <= hour < hours.last:
                return ALLOW
            return Deny(403, "closed_now", f"asked at {hour} h, open from {hours.first} to {hours.last} h")

        return Guard(in_hours)
