"""No management: what stands in its place in a proxy whose mappings come from a file alone."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc.aio

from netbird_proxy.api.errors import ManagementUnavailable
from netbird_proxy.api.model import AccountId, PublicKey

_NONE = "this proxy has no management: there is no [management] section in its settings"


class NoManagement:
    """Implements `steps.ManagementChannel`. Guards that need management close."""

    exists = False
    connected = False
    extensions: frozenset[str] = frozenset()

    @property
    def channel(self) -> grpc.aio.Channel:
        raise ManagementUnavailable(_NONE)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    async def call(self, method: str, request: Any, *, timeout: float | None = None) -> NoReturn:
        raise ManagementUnavailable(f"call {method}: {_NONE}")

    async def create_proxy_peer(self, account: AccountId, public_key: PublicKey, endpoint: str) -> NoReturn:
        raise ManagementUnavailable(_NONE)
