"""The two numbers of `direct_upstream`: 7 in every released NetBird, 11 in the feature's own description.

We write both and honor either. A released NetBird reads 7; for it a bool on 11, where it has a list of messages, is
a field of the wrong wire type, which goes among the unknown ones.
"""

from __future__ import annotations

from netbird_wire.proxy_service_pb2 import PathTargetOptions


def is_direct(options: PathTargetOptions) -> bool:
    """True if this target is dialed through the host's network and not through the tunnel."""
    return options.direct_upstream or options.direct_upstream_11


def set_direct(options: PathTargetOptions, value: bool) -> None:
    """Say so under both numbers."""
    options.direct_upstream = value
    options.direct_upstream_11 = value
