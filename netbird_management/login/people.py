"""Users by their identity at the identity provider.

Only issuer and subject identify a person. An e-mail address identifies a user once, at the first login: if setup or an
administrator created the user, no person is linked to the user yet, and the provider has verified the address.
"""

from datetime import timedelta
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from netbird_management.login.identity_provider import Person
from netbird_management.model.accounts import Role, User
from netbird_management.model.activity import Activity
from netbird_management.model.clock import now
from netbird_management.model.errors import InvalidArgument, PreconditionFailed
from netbird_management.model.ids import AccountId, UserId, new_id
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.access_log import forget_entries_of
from netbird_management.operations.accounts import create_account
from netbird_management.operations.users import checked_email
from netbird_management.store.models import UserIdentityRow, UserRow
from netbird_management.store.state import State

# Maximum number of new users of an account who wait for approval.
WAITING: Final = 100
# Logins of a user within this time are recorded as one event.
LOGIN_NOTED: Final = timedelta(hours=1)


async def user_of(state: State, account_id: AccountId, person: Person) -> User | None:
    """The person's user, in any account. A new person becomes a user, who waits for approval if the account's settings
    require it. `None` if the account was deleted.

    Args:
        account_id: the account in which a new person becomes a user.

    Raises:
        PreconditionFailed: `WAITING` new users already wait for approval there.
    """
    existing = await _row_of(state, person)
    if existing is not None:
        account_id = AccountId(existing.account_id)
    if state.snapshots.get(account_id) is None:
        return None
    async with state.change(account_id) as transaction:
        session = transaction.session
        identity = await session.get(UserIdentityRow, (person.issuer, person.subject))
        row = await session.get(UserRow, identity.user_id) if identity is not None else None
        if row is None:
            row = await _invited(session, account_id, person)
            activity = Activity.USER_LINK if row is not None else Activity.USER_JOIN
            if row is None:
                row = _stranger(state, transaction.account, person)
                session.add(row)
            await session.flush()
            session.add(UserIdentityRow(issuer=person.issuer, subject=person.subject, user_id=row.id, created_at=now()))
            transaction.record(activity, row.id, initiator=row.id, email=row.email or None, issuer=person.issuer)
        if not row.blocked and (row.last_login is None or row.last_login < now() - LOGIN_NOTED):
            transaction.record(Activity.USER_LOGIN, row.id, initiator=row.id, email=row.email or None)
        row.last_login = now()
        user_id = UserId(row.id)
        transaction.touch(users=[user_id])
    snapshot = state.snapshots.get(account_id)
    return snapshot.users.get(user_id) if snapshot is not None else None


async def founder(state: State, account_id: AccountId, person: Person, *, dns_domain: str) -> User | None:
    """Creates an account with its first person as the owner, and returns the owner. `None` without a verified address.

    The account's id is derived from its name, so an account that was deleted and is created again has its old id; its
    old access log is deleted first.
    """
    try:
        email = checked_email(person.email)
        if state.snapshots.get(account_id) is None:
            await forget_entries_of(state, account_id)
        _, user = await create_account(
            state,
            email=email,
            name=person.name or email,
            dns_domain=dns_domain,
            account_id=account_id,
            identity=(person.issuer, person.subject),
        )
    except InvalidArgument:
        return None
    except PreconditionFailed:  # another person created the account at the same time
        return await user_of(state, account_id, person)
    return user


async def known_user(state: State, person: Person) -> UserId | None:
    """The user of a person who has logged in before, else `None`. Never creates a user."""
    row = await _row_of(state, person)
    return None if row is None else UserId(row.id)


async def _row_of(state: State, person: Person) -> UserRow | None:
    async with state.read() as session:
        identity = await session.get(UserIdentityRow, (person.issuer, person.subject))
        return await session.get(UserRow, identity.user_id) if identity is not None else None


async def _invited(session: AsyncSession, account_id: AccountId, person: Person) -> UserRow | None:
    """The user with this address to whom no person is linked yet: the owner from setup, or a user whom an administrator
    created. `None` if several match."""
    if not person.email:
        return None
    claimed = select(UserIdentityRow.user_id).where(UserIdentityRow.user_id == UserRow.id)
    query = select(UserRow).where(
        UserRow.account_id == account_id,
        func.lower(UserRow.email) == person.email.lower(),
        UserRow.is_service_user.is_(False),
        ~claimed.exists(),
    )
    invited = (await session.scalars(query)).all()
    return invited[0] if len(invited) == 1 else None


def _stranger(state: State, account: AccountSnapshot, person: Person) -> UserRow:
    waits = account.account.settings.user_approval_required
    if waits and sum(user.pending_approval for user in account.users.values()) >= WAITING:
        state.count("strangers_refused")
        raise PreconditionFailed("too many users wait for approval")
    try:
        email = checked_email(person.email)
    except InvalidArgument:
        email = ""
    return UserRow(
        id=new_id(),
        account_id=account.account.id,
        role=Role.USER,
        email=email,
        name=person.name,
        auto_groups=[],
        blocked=waits,
        pending_approval=waits,
        created_at=now(),
    )
