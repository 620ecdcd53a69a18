"""Features of the host that are plugins: they use the same hooks as any other plugin."""

from collections.abc import Mapping

DEFAULTS: Mapping[str, str] = {
    "health": "netbird_management.defaults.health:Health",
    "access_export": "netbird_management.defaults.access_export:AccessExport",
}
"""The plugins that every host loads besides the operator's, in this order."""
