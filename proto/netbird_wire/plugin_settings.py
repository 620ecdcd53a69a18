"""What a mapping says to one plugin, or to the core: plain values out of the wire's structs, and back.

A struct knows one kind of number. Whole ones come back as `int`, so that models need not guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

CORE = "core"
"""The key of the settings that no plugin owns."""

_LARGEST_WHOLE = 2**53
"""Beyond it a double no longer tells whole numbers apart."""


def read_settings(message: ProxyMapping | PathMapping, plugin: str) -> dict[str, Any]:
    """What stands under the plugin's id; empty where nothing does. The message is not changed."""
    if plugin not in message.plugin_settings:  # looking it up would make it
        return {}
    told: dict[str, Any] = json_format.MessageToDict(message.plugin_settings[plugin])
    return {name: _whole(value) for name, value in told.items()}


def write_settings(message: ProxyMapping | PathMapping, plugin: str, values: Mapping[str, Any]) -> None:
    """Put these under the plugin's id, in place of what stood there. ValueError for what a struct cannot carry."""
    struct = message.plugin_settings[plugin]
    struct.Clear()
    struct.update(dict(values))


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_WHOLE:
        return int(value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    return value
