"""Sessions that are over before they expire: proxies refuse them, and are told again for as long as any may live."""

from datetime import timedelta
from typing import Final

from sqlalchemy import delete, func, select

from netbird_management.model.clock import now
from netbird_management.model.ids import ServiceId, new_id
from netbird_management.secrets.session_tokens import new_key_pair
from netbird_management.secrets.vault import Vault
from netbird_management.store.models import RevocationRow, ServiceRow
from netbird_management.store.state import Transaction

TOKENS_REVOKED: Final = 10_000
"""Sessions of an account that are revoked one by one; proxies keep 65,536 of all accounts."""
KEPT: Final = timedelta(hours=24)
"""As long as a session lives."""


async def revoke(transaction: Transaction, *, subject: str = "", token_hash: bytes = b"", service_id: str = "") -> None:
    """End every session that a subject has until now, or the one with this SHA-256, on every service of the account.

    It holds with the commit, and proxies hear of it at once. `subject` is what stands in the token: a user's or a
    peer's id; `service_id` is the service whose session the token is.
    """
    if bool(subject) == bool(token_hash):
        raise ValueError("a revocation names a subject or a token")
    if subject:  # the later one says all that earlier ones did
        earlier = RevocationRow.subject == subject, RevocationRow.account_id == transaction.account_id
        await transaction.session.execute(delete(RevocationRow).where(*earlier))
    await transaction.session.execute(
        delete(RevocationRow).where(
            RevocationRow.account_id == transaction.account_id, RevocationRow.not_before < now() - KEPT
        )
    )
    transaction.session.add(
        RevocationRow(
            id=new_id(),
            account_id=transaction.account_id,
            subject=subject,
            token_hash=token_hash,
            service_id=service_id,
            not_before=now(),
        )
    )
    transaction.touch(revocations=True)


async def revoked_tokens(transaction: Transaction) -> int:
    """How many sessions of the account are revoked one by one."""
    held = select(func.count()).select_from(RevocationRow).where(RevocationRow.account_id == transaction.account_id)
    return await transaction.session.scalar(held.where(RevocationRow.subject == "")) or 0


async def end_sessions_of_busiest(transaction: Transaction, vault: Vault) -> None:
    """Ends all sessions of the service with most sessions that are revoked one by one: a new key pair fits none of
    them. The others' stay as they are."""
    of_service = select(RevocationRow.service_id).where(
        RevocationRow.account_id == transaction.account_id, RevocationRow.subject == ""
    )
    number = func.count().desc()
    busiest = await transaction.session.scalar(
        of_service.group_by(RevocationRow.service_id).order_by(number, RevocationRow.service_id).limit(1)
    )
    service = await transaction.session.get(ServiceRow, busiest) if busiest else None
    if service is not None:
        private_key, service.session_public_key = new_key_pair()
        service.session_private_key = vault.seal(private_key)
        transaction.touch(services=[ServiceId(service.id)])
    if busiest:
        await transaction.session.execute(
            delete(RevocationRow).where(
                RevocationRow.account_id == transaction.account_id, RevocationRow.service_id == busiest
            )
        )
        transaction.touch(revocations=True)
