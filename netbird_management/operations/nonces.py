"""Nonces that count once: of one-time tokens and of logins by the identity provider."""

from datetime import datetime

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from netbird_management.model.clock import now
from netbird_management.store.models import SpentNonceRow


async def spend(session: AsyncSession, nonce: str, expires_at: datetime) -> bool:
    """Mark a nonce as used, and forget those that have expired since.

    False if it was used before: the caller's transaction must then end without a commit.
    """
    if await session.get(SpentNonceRow, nonce) is not None:
        return False
    session.add(SpentNonceRow(nonce=nonce, expires_at=expires_at))
    await session.execute(delete(SpentNonceRow).where(SpentNonceRow.expires_at < now()))
    await session.flush()
    return True
