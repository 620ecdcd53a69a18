"""The core's own features, as plugins. Each is a folder here, and uses the same hooks as other plugins."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULTS: Mapping[str, str] = {
    "access_restrictions": "netbird_proxy.defaults.access_restrictions:AccessRestrictions",
    "session": "netbird_proxy.defaults.session:Session",
    "forwarding": "netbird_proxy.defaults.forwarding:Forwarding",
    "access_log": "netbird_proxy.defaults.access_log:AccessLog",
    "telemetry": "netbird_proxy.defaults.telemetry:Telemetry",
}
"""Plugins that a running proxy loads in addition to the operator's, in this order: id → class."""
