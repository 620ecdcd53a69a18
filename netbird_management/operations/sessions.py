"""Session tokens for services, signed with the key of the service."""

import asyncio
from collections.abc import Sequence
from typing import Final

from netbird_management.model.accounts import Group
from netbird_management.model.clock import now
from netbird_management.model.services import Service
from netbird_management.secrets.session_tokens import Method, sign
from netbird_management.store.state import State

MAX_BYTES: Final = 3800


async def mint_session_token(
    state: State, service: Service, subject: str, method: Method, *, email: str = "", groups: Sequence[Group] = ()
) -> str:
    """A token for a session on one service, valid for a day on the service's domain only.

    `subject` is a user's id, the id of a peer without a user, or a fixed name such as `password-user`. Raises
    `LookupError` if the service was deleted, `VaultError` if its key does not open.
    """
    private_key = await state.session_keys.of(service)
    await _after_revocations(state, service, subject)
    token = sign(private_key, service.domain, subject, method, email=email, groups=groups)
    if len(token) > MAX_BYTES:
        # Browsers drop cookies of more than 4096 bytes. Proxies receive the groups when they validate the session.
        token = sign(private_key, service.domain, subject, method, email=email)
    return token


async def _after_revocations(state: State, service: Service, subject: str) -> None:
    """Waits until the second of a subject's latest revocation is over.

    Tokens contain whole seconds, so a token issued later in that second would count as revoked.
    """
    account = state.snapshots.get(service.account_id)
    revocations = account.revocations if account is not None else ()
    ended = [revoked.not_before for revoked in revocations if revoked.subject == subject]
    moment = now()
    if ended and max(ended) > moment.replace(microsecond=0):
        await asyncio.sleep((1_000_000 - moment.microsecond) / 1_000_000)
