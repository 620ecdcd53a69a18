"""The settings of private services on the wire, shared by both halves of the plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from netbird_wire.proxy_service_pb2 import ProxyMapping

FIELD = "private"
"""The claimed field of `ProxyMapping`. It guards: a proxy that does not understand it must not serve the mapping."""

CAPABILITY = "supports_private_service"


@dataclass(frozen=True, slots=True)
class PrivateServiceSettings:
    """`private`: the service is reachable through its account's tunnel only."""

    private: bool = False

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        return cls(private=mapping.private)

    def to_wire(self, mapping: ProxyMapping) -> None:
        mapping.private = self.private


@dataclass(frozen=True, slots=True)
class PublicSchemes:
    """`asks`: a public service requires a login, so that a peer's own tunnel can identify the caller instead."""

    asks: bool = False

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        auth = mapping.auth
        asks = auth.password or auth.pin or auth.oidc or bool(auth.header_auths)
        return cls(asks=asks and not mapping.private)
