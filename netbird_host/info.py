"""What a plugin says about itself when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

PluginId = str
"""The entry point's name: what the operator writes in `plugins = [...]` and what every trail, log and refusal names."""


def always(value: object) -> bool:
    """Whether a set wire field guards: the predicate of a claim that guards whenever it is set."""
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
        guards: says of the field's value whether serving without the plugin would open a door. Empty values and
            `off` are unset and never reach it.
    """

    field: str
    guards: Callable[[Any], bool] = never


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One plugin's facts, fixed at load.

    Attributes:
        capabilities: names told to the other side; two plugins may not tell the same one.
        claims: fields it understands; two plugins may not claim the same one.
        notes: keys its steps may leave with `note`.
        cookies: names of cookies its steps set, or the beginning of such names and `*`. Upstreams and other plugins
            can neither see nor set them; the plugin's own steps and endpoint see them in the request's head.
        options: model of the operator's section `[<plugin id>]` in the settings file; unknown keys are refused.
        settings: models read from each mapping, see `netbird_proxy.api.steps.MappingSettings`.
        target_settings: models read from each target of a mapping, see `netbird_proxy.api.steps.TargetSettings`.
        summary: one line for `plugins` listings.
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
