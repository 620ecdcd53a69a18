"""Cache of the private halves of the services' session keys, unsealed."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from netbird_host.tables import LatestTable
from netbird_management.model.ids import ServiceId
from netbird_management.model.services import Service
from netbird_management.secrets.vault import Vault
from netbird_management.store.models import ServiceRow

# Maximum number of cached private halves. A service gets a new key pair when a change of it removes a credential.
KEYS: Final = 16_384


class SessionKeys:
    """A bounded cache of private halves by service and public half. Signing a session needs the private half."""

    def __init__(self, read: Callable[[], AbstractAsyncContextManager[AsyncSession]], vault: Vault) -> None:
        """`read` opens a session on the store, `vault` opens the secrets sealed there."""
        self._read = read
        self._vault = vault
        self._keys: LatestTable[tuple[ServiceId, str], bytes] = LatestTable(KEYS)

    def __len__(self) -> int:
        return len(self._keys)

    async def of(self, service: Service) -> bytes:
        """The private half (64 bytes): the cached half of the service's public half, else the half in the store.

        Raises `LookupError` if the service was deleted, `VaultError` if its key does not open.
        """
        key = (service.id, service.session_public_key)
        if key in self._keys:
            self._keys.move_to_end(key)
            return self._keys[key]
        async with self._read() as session:
            row = await session.get(ServiceRow, service.id)
        if row is None:
            raise LookupError(f"service {service.id} not found")
        private_key = self._vault.open(row.session_private_key)
        self._keys.keep((service.id, row.session_public_key), private_key)
        return private_key
