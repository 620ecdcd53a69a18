"""The address in gRPC's name of a peer."""

from __future__ import annotations

from urllib.parse import unquote


def peer_address(peer: str) -> str:
    """Return the address in gRPC's name of a peer (`ipv4:192.0.2.1:50000`, `ipv6:[::1]:50000`); "" without one."""
    scheme, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if scheme in ("ipv4", "ipv6") else ""
