"""A plugin with its own section in the settings file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from netbird_proxy import PluginInfo, hookimpl


class GreetingOptions(BaseModel):
    """`[greeting]` in the settings file; the section has the plugin's name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field("hello", min_length=1)


class Greeting:
    """Describes itself, and does nothing else."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(version="1.0", summary="greets", options=GreetingOptions, notes=("greeting",))
