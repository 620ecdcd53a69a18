"""A plugin with a section of its own in the settings file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from netbird_proxy import PluginInfo, hookimpl


class GreetingOptions(BaseModel):
    """`[greeting]` in the settings file; the section is called as the plugin is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field("hello", min_length=1)


class Greeting:
    """Says what it is, and does nothing yet."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(version="1.0", summary="greets", options=GreetingOptions, notes=("greeting",))
