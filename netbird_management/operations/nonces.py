"""Nonces of one-time tokens and of logins by the identity provider, each valid once."""

from datetime import datetime

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from netbird_management.model.clock import now
from netbird_management.store.models import SpentNonceRow


async def spend(session: AsyncSession, nonce: str, expires_at: datetime) -> bool:
    """Marks a nonce as used, and deletes expired nonces.

    Returns False if it was used before; the caller must then roll back its transaction.
    """
    if await session.get(SpentNonceRow, nonce) is not None:
        return False
    session.add(SpentNonceRow(nonce=nonce, expires_at=expires_at))
    await session.execute(delete(SpentNonceRow).where(SpentNonceRow.expires_at < now()))
    await session.flush()
    return True
