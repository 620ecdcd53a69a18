"""Refuses changes of a service's domain."""

from __future__ import annotations

from netbird_management import PluginInfo, Service, Violation, hookimpl


class StableDomains:
    """Keeps a service's domain, because bookmarks and certificates depend on it."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="a service keeps its domain")

    @hookimpl
    def validate_service(self, service: Service, previous: Service | None) -> list[Violation]:
        if previous is None or previous.domain == service.domain:
            return []
        return [Violation(f"{service.name} keeps its domain {previous.domain}: make another service", "domain")]
