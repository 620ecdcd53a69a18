"""Traces: one SERVER span an exchange, one CLIENT span a try, to the operator's collector.

The exchange's id is the trace id (mode `restart`: a client's trace context is not trusted, so a trace starts here), and
page, log, `explain` and collector meet without a join.
"""

from netbird_proxy.defaults.telemetry.plugin import Telemetry, TelemetryOptions

__all__ = ["Telemetry", "TelemetryOptions"]
