"""Setup keys, by which machines join an account without a user."""

import base64
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from sqlalchemy import select

from netbird_management.model.accounts import Peer, PeerMeta
from netbird_management.model.activity import Activity
from netbird_management.model.clock import now
from netbird_management.model.errors import InvalidArgument, NotFound, PreconditionFailed
from netbird_management.model.ids import AccountId, GroupId, new_id
from netbird_management.operations.membership import move
from netbird_management.operations.peers import checked_dns_labels, checked_key, get_peer, insert_peer
from netbird_management.store import limits
from netbird_management.store.models import SetupKeyRow
from netbird_management.store.state import State

MOST_USES: Final = (1 << 31) - 1


class SetupKeyState(StrEnum):
    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"
    OVERUSED = "overused"


@dataclass(frozen=True, slots=True)
class SetupKey:
    """A setup key. `hint` is the beginning of its text. `kind` is `reusable` or `one-off`; a `usage_limit` of 0 means
    unlimited."""

    id: str
    name: str
    hint: str
    kind: str
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    revoked: bool
    used_times: int
    last_used: datetime | None
    auto_groups: tuple[GroupId, ...]
    usage_limit: int
    ephemeral: bool
    allow_extra_dns_labels: bool

    @property
    def state(self) -> SetupKeyState:
        if self.revoked:
            return SetupKeyState.REVOKED
        if self.expires_at is not None and self.expires_at < now():
            return SetupKeyState.EXPIRED
        if self.usage_limit and self.used_times >= self.usage_limit:
            return SetupKeyState.OVERUSED
        return SetupKeyState.VALID


async def create_setup_key(
    state: State,
    account_id: AccountId,
    *,
    name: str,
    kind: str,
    expires_in: float,
    auto_groups: Sequence[GroupId],
    usage_limit: int = 0,
    ephemeral: bool = False,
    allow_extra_dns_labels: bool = False,
) -> tuple[SetupKey, str]:
    """Creates a key and returns it with its text, which is not stored. `expires_in` is in seconds, 0 means never.
    Raises `InvalidArgument`, and `PreconditionFailed` at the limit of keys."""
    if not name or len(name) > 255 or not name.isprintable():
        raise InvalidArgument("setup key name must be 1 to 255 printable characters")
    if kind not in ("reusable", "one-off"):
        raise InvalidArgument(f'setup key type "{kind}" is not one of reusable, one-off')
    if expires_in < 0 or usage_limit < 0:
        raise InvalidArgument("expires_in and usage_limit must not be negative")
    if usage_limit > MOST_USES or (kind == "one-off" and usage_limit > 1):
        most = 1 if kind == "one-off" else MOST_USES
        raise InvalidArgument(f"usage_limit of a {kind} key must be at most {most}")
    plain, moment = str(uuid.uuid4()).upper(), now()
    try:
        expires_at = moment + timedelta(seconds=expires_in) if expires_in else None
    except OverflowError as error:
        raise InvalidArgument("expires_in is too far away") from error
    async with state.change(account_id) as transaction:
        transaction.account.require_groups(auto_groups, auto=True)
        of_account = SetupKeyRow.account_id == account_id
        await limits.check_rows(
            transaction.session, SetupKeyRow, of_account, limit=limits.SETUP_KEYS, name="setup keys"
        )
        row = SetupKeyRow(
            id=new_id(),
            account_id=account_id,
            name=name,
            hashed_key=_hashed(plain),
            hint=plain[:5],
            kind=kind,
            created_at=moment,
            updated_at=moment,
            expires_at=expires_at,
            revoked=False,
            used_times=0,
            last_used=None,
            auto_groups=list(auto_groups),
            usage_limit=1 if kind == "one-off" else usage_limit,
            ephemeral=ephemeral,
            allow_extra_dns_labels=allow_extra_dns_labels,
        )
        transaction.session.add(row)
        transaction.record(Activity.SETUP_KEY_ADD, row.id, name=name, type=kind)
        made = _key(row)
    return made, plain


async def setup_keys_of(state: State, account_id: AccountId) -> list[SetupKey]:
    query = select(SetupKeyRow).where(SetupKeyRow.account_id == account_id).order_by(SetupKeyRow.id)
    async with state.read() as session:
        return [_key(row) for row in (await session.scalars(query)).all()]


async def get_setup_key(state: State, account_id: AccountId, key_id: str) -> SetupKey:
    """A setup key by id. Raises `NotFound`, also for another account's key."""
    async with state.read() as session:
        row = await session.get(SetupKeyRow, key_id)
    if row is None or row.account_id != account_id:
        raise NotFound(f"setup key: {key_id} not found")
    return _key(row)


async def update_setup_key(
    state: State, account_id: AccountId, key_id: str, *, revoked: bool, auto_groups: Sequence[GroupId]
) -> SetupKey:
    """Changes a key's groups or revokes it; a revoked key stays revoked. Raises `NotFound`, `InvalidArgument`."""
    async with state.change(account_id) as transaction:
        row = await transaction.session.get(SetupKeyRow, key_id)
        if row is None or row.account_id != account_id:
            raise NotFound(f"setup key: {key_id} not found")
        transaction.account.require_groups(auto_groups, auto=True)
        if row.revoked and not revoked:
            raise InvalidArgument("a revoked setup key cannot be reactivated: create a new one")
        transaction.record(
            Activity.SETUP_KEY_REVOKE if revoked and not row.revoked else Activity.SETUP_KEY_UPDATE,
            key_id,
            name=row.name,
        )
        row.revoked, row.auto_groups, row.updated_at = revoked, list(auto_groups), now()
        return _key(row)


async def delete_setup_key(state: State, account_id: AccountId, key_id: str) -> None:
    """Deletes a key; peers that joined by it stay. Raises `NotFound`."""
    async with state.change(account_id) as transaction:
        row = await transaction.session.get(SetupKeyRow, key_id)
        if row is None or row.account_id != account_id:
            raise NotFound(f"setup key: {key_id} not found")
        transaction.record(Activity.SETUP_KEY_DELETE, key_id, name=row.name)
        await transaction.session.delete(row)


async def enroll(
    state: State,
    plain: str,
    *,
    key: str,
    hostname: str,
    meta: PeerMeta,
    ssh_key: str = "",
    extra_dns_labels: Sequence[str] = (),
) -> Peer:
    """Creates a peer by a setup key, in `All` and in the key's groups.

    The transaction that creates the peer also counts the use, so a key never exceeds its limit.

    Raises:
        NotFound: the key is not valid.
        InvalidArgument: an extra DNS label is malformed.
        PreconditionFailed: the key does not allow extra DNS labels, or a peer has one as its own label.
    """
    checked_key(key)
    labels = checked_dns_labels(extra_dns_labels)
    query = select(SetupKeyRow).where(SetupKeyRow.hashed_key == _hashed(plain.upper()))
    async with state.read() as session:
        valid = (await session.scalars(query)).one_or_none()
    if valid is None:
        raise NotFound("setup key is invalid")
    account_id = AccountId(valid.account_id)
    async with state.change(account_id) as transaction:
        row = await transaction.session.get(SetupKeyRow, valid.id)
        if row is None or _key(row).state is not SetupKeyState.VALID:
            raise NotFound("setup key is invalid")
        if labels and not row.allow_extra_dns_labels:
            raise PreconditionFailed("setup key doesn't allow extra DNS labels")
        name = hostname or "peer"
        peer_id = await insert_peer(
            state,
            transaction,
            key=key,
            name=name,
            hostname=name,
            meta=meta,
            ephemeral=row.ephemeral,
            ssh_key=ssh_key,
            extra_dns_labels=labels,
        )
        groups = [GroupId(id_) for id_ in row.auto_groups if id_ in transaction.account.groups]
        await move(transaction, [peer_id], join={transaction.account.group_all.id, *groups})
        row.used_times, row.last_used = row.used_times + 1, now()
        transaction.record(Activity.PEER_ADD_BY_KEY, peer_id, initiator=row.id, name=name, setup_key_name=row.name)
    return get_peer(state, account_id, peer_id)


def _hashed(plain: str) -> str:
    return base64.b64encode(hashlib.sha256(plain.encode()).digest()).decode()


def _key(row: SetupKeyRow) -> SetupKey:
    return SetupKey(
        id=row.id,
        name=row.name,
        hint=row.hint,
        kind=row.kind,
        created_at=row.created_at,
        updated_at=row.updated_at,
        expires_at=row.expires_at,
        revoked=row.revoked,
        used_times=row.used_times,
        last_used=row.last_used,
        auto_groups=tuple(GroupId(id_) for id_ in row.auto_groups),
        usage_limit=row.usage_limit,
        ephemeral=row.ephemeral,
        allow_extra_dns_labels=row.allow_extra_dns_labels,
    )
