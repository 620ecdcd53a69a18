"""What `direct_upstream` means on the wire; the only thing both halves share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from netbird_wire.direct_upstream import is_direct, set_direct
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

FIELD = "path.options.direct_upstream"
"""The claimed field. It does not guard: without the plugin the target would be dialed through the tunnel, so a proxy
that does not understand it must not serve the mapping either, but nothing would be opened."""


@dataclass(frozen=True, slots=True)
class DirectUpstreamSettings:
    """Whether one target is dialed from the proxy's own network."""

    direct: bool = False

    @classmethod
    def from_wire(cls, mapping: ProxyMapping, path: PathMapping) -> Self:
        return cls(direct=path.HasField("options") and is_direct(path.options))

    def to_wire(self, path: PathMapping) -> None:
        if self.direct:
            set_direct(path.options, True)
