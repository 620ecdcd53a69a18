"""The flag `direct_upstream` on the wire, shared by both halves of the plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from netbird_wire.direct_upstream import is_direct, set_direct
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

FIELD = "path.options.direct_upstream"
"""The claimed field. A proxy without the plugin refuses such a mapping, since it would dial the target through the
tunnel. The field does not guard: that mistake would not grant access."""


@dataclass(frozen=True, slots=True)
class DirectUpstreamSettings:
    """`direct`: the proxy dials this target from its own network."""

    direct: bool = False

    @classmethod
    def from_wire(cls, mapping: ProxyMapping, path: PathMapping) -> Self:
        return cls(direct=path.HasField("options") and is_direct(path.options))

    def to_wire(self, path: PathMapping) -> None:
        if self.direct:
            set_direct(path.options, True)
