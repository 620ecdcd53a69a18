"""Settings of one plugin, or of the core, in a mapping: plain values from and to the wire's structs.

A struct has a single type of number. Whole numbers are read as `int`, so that models need not guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

CORE = "core"
"""The key of the core's own settings."""

# From this number on, a double cannot represent every whole number.
_LARGEST_WHOLE = 2**53


def read_settings(message: ProxyMapping | PathMapping, plugin: str) -> dict[str, Any]:
    """Settings under the plugin's id; empty if the mapping has none. The message is not changed."""
    if plugin not in message.plugin_settings:  # indexing would add an entry
        return {}
    settings: dict[str, Any] = json_format.MessageToDict(message.plugin_settings[plugin])
    return {name: _whole(value) for name, value in settings.items()}


def write_settings(message: ProxyMapping | PathMapping, plugin: str, values: Mapping[str, Any]) -> None:
    """Replace the settings under the plugin's id. Raises ValueError for values that a struct cannot carry."""
    struct = message.plugin_settings[plugin]
    struct.Clear()
    struct.update(dict(values))


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_WHOLE:
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    return value
