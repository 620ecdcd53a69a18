"""The private halves of the services' session keys, unsealed once."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from netbird_host.tables import LatestTable
from netbird_management.model.ids import ServiceId
from netbird_management.model.services import Service
from netbird_management.secrets.vault import Vault
from netbird_management.store.models import ServiceRow

KEYS: Final = 16_384
"""Private halves that are kept in memory; a service gets a new one when a change of it takes a credential away."""


class SessionKeys:
    """A bounded cache, by service and public half. Every session that is signed needs a private half."""

    def __init__(self, read: Callable[[], AbstractAsyncContextManager[AsyncSession]], vault: Vault) -> None:
        """`read` opens a session on the store, `vault` opens what is sealed there."""
        self._read = read
        self._vault = vault
        self._keys: LatestTable[tuple[ServiceId, str], bytes] = LatestTable(KEYS)

    def __len__(self) -> int:
        return len(self._keys)

    async def of(self, service: Service) -> bytes:
        """The private half (64 bytes), in the version that the store has now.

        Raises `LookupError` if the service is gone, `VaultError` if its key does not open.
        """
        known = (service.id, service.session_public_key)
        if known in self._keys:
            self._keys.move_to_end(known)
            return self._keys[known]
        async with self._read() as session:
            row = await session.get(ServiceRow, service.id)
        if row is None:
            raise LookupError(f"service {service.id} not found")
        private_key = self._vault.open(row.session_private_key)
        self._keys.keep((service.id, row.session_public_key), private_key)
        return private_key
