"""The access log: for each exchange one line of the operator's log, and one entry for management.

The core claims the target option `disable_access_log`; this plugin obeys it.
"""

from netbird_proxy.defaults.access_log.plugin import AccessLog, AccessLogOptions

__all__ = ["AccessLog", "AccessLogOptions"]
