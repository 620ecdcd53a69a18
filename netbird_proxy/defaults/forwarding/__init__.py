"""What upstreams are told about clients behind other proxies: the `X-Forwarded-*` family, and `Forwarded`.

Without it the core says the same from the socket alone, and believes nobody.
"""

from netbird_proxy.defaults.forwarding.plugin import Forwarding, ForwardingOptions

__all__ = ["Forwarding", "ForwardingOptions"]
