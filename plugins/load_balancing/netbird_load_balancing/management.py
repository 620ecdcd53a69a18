"""Management's half: accepts a service's and its targets' settings of load balancing."""

from __future__ import annotations

from importlib.metadata import version

from netbird_load_balancing.settings import FIELD, TARGET_FIELD, LoadBalancingSettings, TargetWeight
from netbird_management import Claim, PluginInfo, always, hookimpl


class LoadBalancing:
    """Validates the settings, and withholds a service with such settings from proxies that would ignore them."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-load-balancing"),
            summary="load balancing of a service: weights, policies, sticky clients, passive health",
            claims=(Claim(FIELD, guards=always), Claim(TARGET_FIELD, guards=always)),
            settings=(LoadBalancingSettings,),
            target_settings=(TargetWeight,),
        )
