"""What `private` means on the wire; the only thing both halves share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from netbird_wire.proxy_service_pb2 import ProxyMapping

FIELD = "private"
"""The claimed field of `ProxyMapping`. It guards: a proxy that does not understand it must not serve the mapping."""

CAPABILITY = "supports_private_service"


@dataclass(frozen=True, slots=True)
class PrivateServiceSettings:
    """Whether a service may be reached through its account's tunnel only."""

    private: bool = False

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        return cls(private=mapping.private)

    def to_wire(self, mapping: ProxyMapping) -> None:
        mapping.private = self.private


@dataclass(frozen=True, slots=True)
class PublicSchemes:
    """Whether a public service asks who is calling, so that a peer's own tunnel is an answer to that."""

    asks: bool = False

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        auth = mapping.auth
        asks = auth.password or auth.pin or auth.oidc or bool(auth.header_auths)
        return cls(asks=asks and not mapping.private)
