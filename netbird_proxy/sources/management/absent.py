"""A stand-in for management in a proxy that has none: its mappings come from a file, or from the embedding program."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc.aio

from netbird_proxy.api.errors import ManagementUnavailable
from netbird_proxy.api.model import AccountId, PublicKey

NO_SECTION = "this proxy has no management: its settings have no [management] section"


class NoManagement:
    """Implements `ManagementChannel`. Guards that need management close.

    Args:
        reason: sentence for the operator; every refused call carries it.
    """

    exists = False
    connected = False
    extensions: frozenset[str] = frozenset()

    def __init__(self, reason: str = NO_SECTION) -> None:
        self._reason = reason

    @property
    def channel(self) -> grpc.aio.Channel:
        raise ManagementUnavailable(self._reason)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    async def call(self, method: str, request: Any, *, timeout: float | None = None) -> NoReturn:
        raise ManagementUnavailable(f"call {method}: {self._reason}")

    async def create_proxy_peer(
        self, account: AccountId, public_key: PublicKey, endpoint: str, *, serves_dns: bool = False
    ) -> NoReturn:
        raise ManagementUnavailable(self._reason)
