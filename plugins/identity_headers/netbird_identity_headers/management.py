"""Management's half: lets services say how much of the caller's groups their upstreams are told."""

from __future__ import annotations

from importlib.metadata import version

from netbird_identity_headers.settings import FIELD, IdentityHeadersSettings
from netbird_management import Claim, PluginInfo, always, hookimpl


class IdentityHeaders:
    """Judges the settings, and keeps a service that has some from proxies that would not heed them."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-identity-headers"),
            summary="how much of the caller's groups a service's upstreams are told",
            claims=(Claim(FIELD, guards=always),),
            settings=(IdentityHeadersSettings,),
        )
