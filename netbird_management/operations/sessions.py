"""Sessions on services, signed with the key of the service."""

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
    """A session on one service, for its domain alone, valid for a day.

    `subject` is a user id, or a peer id where the peer has no user, or `password-user` and the like. Raises
    `LookupError` if the service is gone, `VaultError` if its key does not open.
    """
    private_key = await state.session_keys.of(service)
    await _after_revocations(state, service, subject)
    token = sign(private_key, service.domain, subject, method, email=email, groups=groups)
    if len(token) > MAX_BYTES:
        # Browsers keep no cookie of more than 4096 bytes. Proxies learn the groups when they ask about the session.
        token = sign(private_key, service.domain, subject, method, email=email)
    return token


async def _after_revocations(state: State, service: Service, subject: str) -> None:
    """Let the second of a subject's revocation pass.

    Tokens contain whole seconds: a token made later in that second would count as one from before, and let nobody in.
    """
    account = state.snapshots.get(service.account_id)
    revocations = account.revocations if account is not None else ()
    ended = [revoked.not_before for revoked in revocations if revoked.subject == subject]
    moment = now()
    if ended and max(ended) > moment.replace(microsecond=0):
        await asyncio.sleep((1_000_000 - moment.microsecond) / 1_000_000)
