"""The access log: one line an exchange, and one entry for management.

Core claims the target option `disable_access_log`; this plugin honors it.
"""

from netbird_proxy.defaults.access_log.plugin import AccessLog, AccessLogOptions

__all__ = ["AccessLog", "AccessLogOptions"]
