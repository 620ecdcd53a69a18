"""Withholds a mapping from proxies that would ignore its settings."""

from __future__ import annotations

from netbird_management import (
    ALLOW,
    Capabilities,
    Decision,
    Deny,
    PluginInfo,
    Service,
    WithholdPredicate,
    hookimpl,
)

CLAIM = "plugin_settings.office_hours"


class OfficeHoursOnly:
    """Sends services with office hours only to proxies that claim that setting."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="keeps services with office hours from proxies that do not know them")

    @hookimpl
    def withhold_mapping(self, service: Service) -> WithholdPredicate | None:
        return _claims_it if service.name.startswith("office") else None


def _claims_it(capabilities: Capabilities) -> Decision:
    if capabilities.claims is not None and CLAIM in capabilities.claims:
        return ALLOW
    return Deny("the proxy does not know office hours")
