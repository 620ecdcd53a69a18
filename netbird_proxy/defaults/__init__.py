"""The core's own features, as plugins: each is a folder here, and comes in through the same door as anybody's."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULTS: Mapping[str, str] = {
    "access_restrictions": "netbird_proxy.defaults.access_restrictions:AccessRestrictions",
    "session": "netbird_proxy.defaults.session:Session",
    "forwarding": "netbird_proxy.defaults.forwarding:Forwarding",
    "access_log": "netbird_proxy.defaults.access_log:AccessLog",
    "telemetry": "netbird_proxy.defaults.telemetry:Telemetry",
}
"""What a running proxy loads beside the operator's plugins, in this order."""
