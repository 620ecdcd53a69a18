"""Creation of accounts."""

import os
import secrets
from dataclasses import asdict
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from sqlalchemy import select

from netbird_management.model.accounts import ALL_GROUP, AccountSettings, Policy, PolicyRule, Role, User
from netbird_management.model.activity import Activity
from netbird_management.model.clock import now
from netbird_management.model.errors import PreconditionFailed
from netbird_management.model.ids import AccountId, GroupId, PolicyId, UserId, new_id
from netbird_management.operations.users import checked_email
from netbird_management.store import network_rows as rows
from netbird_management.store.models import AccountRow, GroupRow, UserIdentityRow, UserRow
from netbird_management.store.state import State

DNS_DOMAIN: Final = "netbird.selfhosted"


async def create_account(
    state: State,
    *,
    email: str,
    name: str,
    created_by: str = "",
    dns_domain: str = DNS_DOMAIN,
    only_first: bool = False,
    account_id: AccountId | None = None,
    identity: tuple[str, str] | None = None,
) -> tuple[AccountId, User]:
    """Creates an account with an owner, an overlay network, the group `All` and a policy that connects `All` to `All`.

    Args:
        account_id: an id derived from the account's name in the provider's claim; None generates an id.
        identity: issuer and subject of the owner at the identity provider.

    Raises:
        InvalidArgument: `email` is not an e-mail address.
        PreconditionFailed: the account exists; with `only_first`, any account exists.
    """
    account_id, user_id, group_id = account_id or AccountId(new_id()), UserId(new_id()), GroupId(new_id())
    address = checked_email(email)
    policy_id = new_id()
    described = "This is a default rule that allows connections between all the resources"
    rule = PolicyRule(
        id=policy_id,
        name="Default",
        sources=(group_id,),
        destinations=(group_id,),
        bidirectional=True,
        description=described,
    )
    async with state.change(account_id) as transaction:
        session = transaction.session
        if only_first and await session.scalar(select(AccountRow.id).limit(1)) is not None:
            raise PreconditionFailed("setup already completed")
        if transaction.before is not None:
            raise PreconditionFailed("the account already exists")
        session.add(
            AccountRow(
                id=account_id,
                created_at=now(),
                created_by=created_by or user_id,
                network=str(_free_network(state)),
                network_v6=str(IPv6Network((b"\xfd" + os.urandom(7) + bytes(8), 64))),
                dns_domain=dns_domain,
                settings=asdict(AccountSettings(peer_login_expiration_enabled=True)),
            )
        )
        await session.flush()
        session.add(
            UserRow(
                id=user_id,
                account_id=account_id,
                role=Role.OWNER,
                email=address,
                name=name,
                auto_groups=[],
                created_at=now(),
            )
        )
        if identity is not None:
            await session.flush()
            issuer, subject = identity
            session.add(UserIdentityRow(issuer=issuer, subject=subject, user_id=user_id, created_at=now()))
            transaction.record(Activity.USER_JOIN, user_id, initiator=user_id, email=address, issuer=issuer)
        session.add(GroupRow(id=group_id, account_id=account_id, name=ALL_GROUP))
        policy = Policy(PolicyId(policy_id), "Default", rules=(rule,), description=described)
        session.add(rows.policy_row(account_id, policy))
        transaction.record(Activity.ACCOUNT_CREATE, account_id, initiator=created_by or user_id)
    snapshot = state.snapshots.get(account_id)
    if snapshot is None:
        raise LookupError("the account was deleted at the same time")
    return account_id, snapshot.users[user_id]


def _free_network(state: State) -> IPv4Network:
    """One of the 64 networks of 65,536 addresses in 100.64.0.0/10, if possible one that no other account uses."""
    used = {snapshot.account.network for snapshot in state.snapshots.all()}
    networks = list(IPv4Network("100.64.0.0/10").subnets(new_prefix=16))
    return secrets.choice([network for network in networks if network not in used] or networks)
