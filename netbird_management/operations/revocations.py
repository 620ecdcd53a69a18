"""Revoked sessions: proxies refuse them. Management sends revocations to proxies until the sessions have expired."""

from datetime import timedelta
from typing import Final

from sqlalchemy import delete, func, select

from netbird_management.model.clock import now
from netbird_management.model.ids import ServiceId, new_id
from netbird_management.secrets.session_tokens import new_key_pair
from netbird_management.secrets.vault import Vault
from netbird_management.store.models import RevocationRow, ServiceRow
from netbird_management.store.state import Transaction

# Maximum number of sessions of an account that are revoked by token; proxies store 65,536 of all accounts.
TOKENS_REVOKED: Final = 10_000
# Time for which a revocation is kept: the lifetime of a session.
KEPT: Final = timedelta(hours=24)


async def revoke(transaction: Transaction, *, subject: str = "", token_hash: bytes = b"", service_id: str = "") -> None:
    """Ends every session issued to a subject so far, on every service of the account, or the session with this SHA-256.

    It takes effect with the commit, and proxies are notified at once. `subject` is the token's subject: a user's or a
    peer's id. `service_id` is the service of the token's session.
    """
    if bool(subject) == bool(token_hash):
        raise ValueError("a revocation needs a subject or a token")
    if subject:  # the new revocation includes the subject's earlier ones
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
    """Number of sessions of the account that are revoked by token."""
    counted = select(func.count()).select_from(RevocationRow).where(RevocationRow.account_id == transaction.account_id)
    return await transaction.session.scalar(counted.where(RevocationRow.subject == "")) or 0


async def end_sessions_of_busiest(transaction: Transaction, vault: Vault) -> None:
    """Ends all sessions of the service with the most revoked tokens by giving it a new key pair, and deletes its
    revocations. Sessions of other services stay valid."""
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
