"""Reports clients behind trusted proxies to upstreams, in the `X-Forwarded-*` fields and `Forwarded`.

Without this plugin the core reports the address of the socket, and trusts no proxy.
"""

from netbird_proxy.defaults.forwarding.plugin import Forwarding, ForwardingOptions

__all__ = ["Forwarding", "ForwardingOptions"]
