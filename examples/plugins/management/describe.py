"""The smallest plugin: it only describes itself."""

from __future__ import annotations

from netbird_management import PluginInfo, hookimpl


class Greeting:
    """Does nothing yet."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(version="1.0", summary="greets")
