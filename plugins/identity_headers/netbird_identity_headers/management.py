"""Management's half: accepts a service's settings of its identity headers."""

from __future__ import annotations

from importlib.metadata import version

from netbird_identity_headers.settings import FIELD, IdentityHeadersSettings
from netbird_management import Claim, PluginInfo, always, hookimpl


class IdentityHeaders:
    """Validates the settings, and withholds a service with such settings from proxies that would ignore them."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-identity-headers"),
            summary="limits on the caller's groups that a service's upstreams receive",
            claims=(Claim(FIELD, guards=always),),
            settings=(IdentityHeadersSettings,),
        )
