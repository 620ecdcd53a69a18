"""Management's half: accepts a service's settings of its response headers."""

from __future__ import annotations

from importlib.metadata import version

from netbird_management import Claim, PluginInfo, always, hookimpl
from netbird_response_headers.settings import FIELD, ResponseHeadersSettings


class ResponseHeaders:
    """Validates the settings, and withholds a service with such settings from proxies that would ignore them."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-response-headers"),
            summary="headers of a service's answers: HSTS, Server, CSP, CORS and others",
            claims=(Claim(FIELD, guards=always),),
            settings=(ResponseHeadersSettings,),
        )
