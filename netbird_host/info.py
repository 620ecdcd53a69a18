"""A plugin's description of itself, which the host reads when it loads the plugin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

PluginId = str
"""The name of the plugin's entry point. Operators list it in `plugins = [...]`; trails, logs and refusals report it."""


def always(value: object) -> bool:
    """The predicate of a claim that guards whenever its field is set."""
    return bool(value)


def never(_value: object) -> bool:
    """The predicate of a claim that guards nothing."""
    return False


@dataclass(frozen=True, slots=True)
class Claim:
    """A wire field (or stored field, on the management host) that a plugin understands.

    Args:
        field: dotted path inside `ProxyMapping`, such as `private`, `auth.password` or `path.options.direct_upstream`;
            for extensions `plugin_settings.<plugin id>`.
        guards: called with the field's value; True if a proxy that serves the mapping without the plugin would grant
            access that the field denies. Never called with an empty value or `off`, which count as unset.
    """

    field: str
    guards: Callable[[Any], bool] = never


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A plugin's description, fixed when the plugin is loaded.

    Attributes:
        capabilities: names that the host reports to the other side; each belongs to one plugin.
        claims: fields that the plugin understands; each belongs to one plugin.
        notes: keys that the plugin's steps may set with `note`.
        cookies: names of cookies that the plugin's steps set, or prefixes of such names followed by `*`. Upstreams and
            other plugins can neither see nor set them; the plugin's own steps and endpoint see them in the request.
        options: model of the operator's section `[<plugin id>]` in the settings file; unknown keys are refused.
        settings: models read from each mapping, see `netbird_proxy.api.steps.MappingSettings`.
        target_settings: models read from each target of a mapping, see `netbird_proxy.api.steps.TargetSettings`.
        summary: one line for listings of plugins.
    """

    version: str = "0"
    summary: str = ""
    capabilities: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()
    cookies: tuple[str, ...] = ()
    options: type[BaseModel] | None = None
    settings: tuple[type[Any], ...] = ()
    target_settings: tuple[type[Any], ...] = ()
