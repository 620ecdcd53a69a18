"""Users and their personal access tokens."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, select, update

from netbird_management.model.accounts import Role, User
from netbird_management.model.activity import Activity
from netbird_management.model.clock import now
from netbird_management.model.errors import InvalidArgument, NotFound, PermissionDenied, PreconditionFailed
from netbird_management.model.ids import AccountId, GroupId, TokenId, UserId, new_id
from netbird_management.operations.membership import move
from netbird_management.operations.peers import remove_peers
from netbird_management.operations.revocations import revoke
from netbird_management.store import limits
from netbird_management.store.models import PersonalTokenRow, UserRow
from netbird_management.store.state import State, Transaction
from netbird_wire.tokens import TokenKind, mint, stored_hash, well_formed

WAITING_KEPT: Final = timedelta(days=30)
# Precision of `last_used`, so that a busy token is not written at every call.
LAST_USED_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class PersonalToken:
    id: TokenId
    user_id: UserId
    name: str
    expires_at: datetime
    created_by: str
    created_at: datetime
    last_used: datetime | None


def checked_email(email: str) -> str:
    """The address, if it is valid. Raises `InvalidArgument`, also for control characters, as proxies send the address
    in request headers."""
    local, at, host = email.rpartition("@")
    if not (local and at and host) or len(email) > 254 or not email.isprintable() or " " in email:
        raise InvalidArgument("a valid email is required")
    return email


def checked_name(name: str, what: str) -> str:
    """The name of a user or of a user's token, if it is valid; it may be empty. Raises `InvalidArgument`."""
    if len(name) > 255 or not name.isprintable():
        raise InvalidArgument(f"{what} must be at most 255 printable characters")
    return name


async def create_user(
    state: State,
    account_id: AccountId,
    *,
    role: Role,
    email: str = "",
    name: str = "",
    auto_groups: Sequence[GroupId] = (),
    is_service_user: bool = False,
) -> User:
    """Creates a user. A person needs an e-mail address, a service user a name. The role must not be owner."""
    if role is Role.OWNER:
        raise InvalidArgument("a user cannot be created as owner")
    if is_service_user and not name:
        raise InvalidArgument("a service user needs a name")
    if is_service_user and email:
        raise InvalidArgument("email is not supported for a service user")
    checked_name(name, "name")
    address = "" if is_service_user else checked_email(email)
    user_id = UserId(new_id())
    async with state.change(account_id) as transaction:
        transaction.account.require_groups(auto_groups, auto=True)
        if address and any(user.email.lower() == address.lower() for user in transaction.account.users.values()):
            raise InvalidArgument(f"user with email {address} already exists")
        row = UserRow(
            id=user_id,
            account_id=account_id,
            role=role,
            email=address,
            name=name,
            auto_groups=list(auto_groups),
            is_service_user=is_service_user,
            created_at=now(),
        )
        transaction.session.add(row)
        transaction.touch(users=[user_id])
        transaction.record(Activity.USER_CREATE, user_id, email=address or None, name=name or None, role=role.value)
    return _user(state, account_id, user_id)


async def update_user(
    state: State,
    account_id: AccountId,
    user_id: UserId,
    *,
    role: Role,
    auto_groups: Sequence[GroupId],
    blocked: bool | None = None,
) -> User:
    """Changes a user's role and groups, and blocks or unblocks the user; the user's peers move with the groups.

    `blocked` of `None` keeps it. A user who waits for approval stays blocked until `approve_user`.

    Raises `NotFound`, `InvalidArgument`, `PreconditionFailed` for unblocking a user who waits for approval, and
    `PermissionDenied` for a change of the owner.
    """
    async with state.change(account_id) as transaction:
        user = transaction.account.users.get(user_id)
        if user is None:
            raise NotFound(f"user: {user_id} not found")
        transaction.account.require_groups(auto_groups, auto=True)
        if (user.role is Role.OWNER) != (role is Role.OWNER):
            raise PermissionDenied("the owner of an account cannot be changed")
        if user.role is Role.OWNER and blocked:
            raise PermissionDenied("the owner of an account cannot be blocked")
        if user.pending_approval and blocked is False:
            raise PreconditionFailed(f"user {user_id} waits for approval: approve or reject the user")
        blocked = user.blocked if blocked is None else blocked
        row = await transaction.session.get_one(UserRow, user_id)
        row.role, row.auto_groups, row.blocked = role, list(auto_groups), blocked
        transaction.touch(users=[user_id])
        if role is not user.role:
            transaction.record(Activity.USER_ROLE, user_id, role=role.value)
        if tuple(auto_groups) != user.auto_groups:
            transaction.record(Activity.USER_GROUPS, user_id, groups=list(auto_groups))
        if blocked != user.blocked:
            transaction.record(Activity.USER_BLOCK if blocked else Activity.USER_UNBLOCK, user_id)
            await transaction.raise_serial()
        if blocked and not user.blocked:
            await revoke(transaction, subject=user_id)
        peers = [peer.id for peer in transaction.account.peers.values() if peer.user_id == user_id]
        before, after = set(user.auto_groups), set(auto_groups)
        await move(transaction, peers, leave=before - after, join=after - before)
    return _user(state, account_id, user_id)


async def approve_user(state: State, account_id: AccountId, user_id: UserId) -> User:
    """Approves a user who waits for approval. Raises `NotFound`, `PreconditionFailed` for a user who does not wait."""
    async with state.change(account_id) as transaction:
        user = _waiting_user(transaction, user_id)
        row = await transaction.session.get_one(UserRow, user_id)
        row.pending_approval, row.blocked = False, False
        transaction.touch(users=[user_id])
        transaction.record(Activity.USER_APPROVE, user_id, email=user.email or None)
        await transaction.raise_serial()
    return _user(state, account_id, user_id)


async def reject_user(state: State, account_id: AccountId, user_id: UserId) -> None:
    """Deletes a user who waits for approval, like `delete_user`. Raises like `approve_user`."""
    async with state.change(account_id) as transaction:
        user = _waiting_user(transaction, user_id)
        await _remove(transaction, user)
        transaction.record(Activity.USER_REJECT, user_id, email=user.email or None)


def _waiting_user(transaction: Transaction, user_id: UserId) -> User:
    user = transaction.account.users.get(user_id)
    if user is None:
        raise NotFound(f"user: {user_id} not found")
    if not user.pending_approval:
        raise PreconditionFailed(f"user {user_id} is not pending approval")
    return user


async def forget_waiting(state: State, *, kept: timedelta = WAITING_KEPT) -> None:
    """Rejects users who have waited for approval since their last login for longer than `kept`."""
    cutoff = now() - kept
    for account in state.snapshots.all():
        for user in account.users.values():
            if user.pending_approval and (user.last_login or user.created_at) < cutoff:
                with suppress(
                    NotFound, PreconditionFailed
                ):  # meanwhile an operator approved or rejected the user, or a service targets one of the peers
                    await reject_user(state, account.account.id, user.id)


async def delete_user(state: State, account_id: AccountId, user_id: UserId) -> None:
    """Deletes a user with tokens and peers; the peers' keys become available again.

    Raises `NotFound`, `PermissionDenied` for the owner, and `PreconditionFailed` while a service targets one of the
    peers.
    """
    async with state.change(account_id) as transaction:
        user = transaction.account.users.get(user_id)
        if user is None:
            raise NotFound(f"user: {user_id} not found")
        if user.role is Role.OWNER:
            raise PermissionDenied("the owner of an account cannot be deleted")
        await _remove(transaction, user)
        transaction.record(Activity.USER_DELETE, user_id, email=user.email or None, name=user.name or None)


async def create_token(
    state: State, user: User, *, name: str, days: int, created_by: UserId
) -> tuple[PersonalToken, str]:
    """Creates a personal access token and returns it with its text, which is not stored."""
    if not name:
        raise InvalidArgument("token name must not be empty")
    checked_name(name, "token name")
    if not 1 <= days <= 365:
        raise InvalidArgument("expires_in must be between 1 and 365 days")
    plain = mint(TokenKind.PERSONAL)
    row = PersonalTokenRow(
        id=new_id(),
        user_id=user.id,
        name=name,
        hashed_token=stored_hash(plain),
        expires_at=now() + timedelta(days=days),
        created_by=created_by,
        created_at=now(),
    )
    async with state.change(user.account_id) as transaction:
        session, of_user = transaction.session, PersonalTokenRow.user_id == user.id
        await limits.check_rows(
            session, PersonalTokenRow, of_user, limit=limits.TOKENS_OF_A_USER, name="tokens of this user"
        )
        session.add(row)
        await session.flush()
        token = _token(row)
        transaction.record(Activity.PERSONAL_TOKEN_CREATE, user.id, initiator=created_by, name=name)
    return token, plain


async def tokens_of(state: State, user_id: UserId) -> list[PersonalToken]:
    query = select(PersonalTokenRow).where(PersonalTokenRow.user_id == user_id).order_by(PersonalTokenRow.id)
    async with state.read() as session:
        return [_token(row) for row in (await session.scalars(query)).all()]


async def delete_token(state: State, user: User, token_id: TokenId) -> None:
    """Deletes a token. Raises `NotFound`, also for another user's token."""
    async with state.change(user.account_id) as transaction:
        row = await transaction.session.get(PersonalTokenRow, token_id)
        if row is None or row.user_id != user.id:
            raise NotFound(f"pat: {token_id} not found")
        await transaction.session.delete(row)
        transaction.record(Activity.PERSONAL_TOKEN_DELETE, user.id, name=row.name)


async def user_of_token(state: State, text: str) -> UserId | None:
    """The user of a valid personal access token, else `None`; records that the token was used."""
    if not well_formed(text, TokenKind.PERSONAL):
        return None
    async with state.read() as session:
        query = select(PersonalTokenRow).where(PersonalTokenRow.hashed_token == stored_hash(text))
        row = (await session.scalars(query)).one_or_none()
    if row is None or row.expires_at < now():
        return None
    if row.last_used is None or (now() - row.last_used).total_seconds() > LAST_USED_SECONDS:
        async with state.write() as session:
            used = update(PersonalTokenRow).where(PersonalTokenRow.id == row.id).values(last_used=now())
            await session.execute(used)
    return UserId(row.user_id)


async def _remove(transaction: Transaction, user: User) -> None:
    """Deletes the user with tokens, identities and peers, and ends the user's sessions. Raises `PreconditionFailed`."""
    await remove_peers(transaction, [peer for peer in transaction.account.peers.values() if peer.user_id == user.id])
    await transaction.session.execute(delete(UserRow).where(UserRow.id == user.id))
    transaction.touch(users=[user.id])
    await revoke(transaction, subject=user.id)


def _user(state: State, account_id: AccountId, user_id: UserId) -> User:
    snapshot = state.snapshots.get(account_id)
    if snapshot is None or user_id not in snapshot.users:
        raise NotFound(f"user: {user_id} not found")
    return snapshot.users[user_id]


def _token(row: PersonalTokenRow) -> PersonalToken:
    return PersonalToken(
        id=TokenId(row.id),
        user_id=UserId(row.user_id),
        name=row.name,
        expires_at=row.expires_at,
        created_by=row.created_by,
        created_at=row.created_at,
        last_used=row.last_used,
    )
