"""Parts of the host kit that plugins use: descriptions, back-off, single flight, throttles, fair shares by client,
and a writer of lines that does not block the event loop."""

from netbird_host.buckets import Buckets
from netbird_host.http_fields import TOKEN_PATTERN, retry_after
from netbird_host.info import Claim, PluginInfo, always, never
from netbird_host.line_writer import LineWriter
from netbird_host.login_throttle import LoginThrottle
from netbird_host.reload import ReloadReport
from netbird_host.single_flight import SingleFlight
from netbird_host.sources import source_of, unmapped
from netbird_host.tables import BoundedTable, IdentityCache, LatestTable
from netbird_wire.backoff import Backoff

__all__ = [
    "TOKEN_PATTERN",
    "Backoff",
    "BoundedTable",
    "Buckets",
    "Claim",
    "IdentityCache",
    "LatestTable",
    "LineWriter",
    "LoginThrottle",
    "PluginInfo",
    "ReloadReport",
    "SingleFlight",
    "always",
    "never",
    "retry_after",
    "source_of",
    "unmapped",
]
