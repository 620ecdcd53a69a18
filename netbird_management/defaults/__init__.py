"""The host's own features that are plugins: they come in through the same door as anybody's."""

from collections.abc import Mapping

DEFAULTS: Mapping[str, str] = {
    "health": "netbird_management.defaults.health:Health",
    "access_export": "netbird_management.defaults.access_export:AccessExport",
}
"""What a running host loads beside the operator's plugins, in this order."""
