"""Reading accounts from the store: completely at start, and after a change only the touched rows."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar, cast

from immutables import Map
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from netbird_management.model.accounts import CustomDomain, Dns, Group, Revoked, RoutedNetwork
from netbird_management.model.ids import AccountId, GroupId
from netbird_management.model.snapshot import AccountSnapshot, Touched
from netbird_management.store import network_rows, service_rows
from netbird_management.store.models import (
    AccountRow,
    DomainRow,
    GroupPeerRow,
    GroupRow,
    NameserverGroupRow,
    NetworkRow,
    PeerRow,
    PolicyRow,
    RevocationRow,
    ServiceRow,
    UserRow,
    ZoneRow,
)

R = TypeVar("R", UserRow, GroupRow, PeerRow, ServiceRow, PolicyRow)
K = TypeVar("K", bound=str)
V = TypeVar("V")


async def read_account(
    session: AsyncSession, account_id: AccountId, before: AccountSnapshot | None, touched: Touched, *, generation: int
) -> AccountSnapshot | None:
    """The account as the session sees it, `None` if it does not exist. With `before`, only touched rows are read."""
    row = await session.get(AccountRow, account_id)
    if row is None:
        return None
    of_groups = await _memberships(session, account_id, None if before is None else touched.groups)

    def group(row: GroupRow) -> Group:
        return network_rows.group_of(row, of_groups.get(GroupId(row.id), ()))

    async def part(
        kind: type[R], kept: Mapping[K, V] | None, ids: frozenset[K], model: Callable[[R], V]
    ) -> Mapping[K, V]:
        return await _part(session, account_id, kind, kept, ids, model)

    return AccountSnapshot.of(
        network_rows.account_of(row),
        users=await part(UserRow, before.users if before else None, touched.users, network_rows.user_of),
        groups=await part(GroupRow, before.groups if before else None, touched.groups, group),
        peers=await part(PeerRow, before.peers if before else None, touched.peers, network_rows.peer_of),
        services=await part(ServiceRow, before.services if before else None, touched.services, service_rows.service_of),
        policies=await part(PolicyRow, before.policies if before else None, touched.policies, network_rows.policy_of),
        custom_domains=before.custom_domains if before and not touched.domains else await _domains(session, account_id),
        dns=before.dns if before and not touched.dns else await _dns(session, account_id),
        networks=before.networks if before and not touched.networks else await _networks(session, account_id),
        revocations=before.revocations
        if before and not touched.revocations
        else await _revocations(session, account_id),
        generation=generation,
        before=before,
        touched=touched,
    )


async def _part(
    session: AsyncSession,
    account_id: AccountId,
    kind: type[R],
    kept: Mapping[K, V] | None,
    ids: frozenset[K],
    model: Callable[[R], V],
) -> Mapping[K, V]:
    """The account's rows as models by id: all rows, or `kept` with the rows of `ids` read again."""
    if kept is not None and not ids:
        return kept
    query = select(kind).where(kind.account_id == account_id)
    if kept is None:
        return {cast(K, row.id): model(row) for row in (await session.scalars(query)).all()}
    rows = (await session.scalars(query.where(kind.id.in_(ids)))).all()
    read = {cast(K, row.id): model(row) for row in rows}
    if not isinstance(kept, Map):
        return {id_: value for id_, value in kept.items() if id_ not in ids} | read
    mutation = kept.mutate()
    for id_ in ids:
        mutation.pop(id_, None)
    mutation.update(read)
    return mutation.finish()


async def _memberships(
    session: AsyncSession, account_id: AccountId, groups: Iterable[GroupId] | None
) -> dict[GroupId, list[str]]:
    """The ids of peers by group, for these groups or, with `None`, for all groups."""
    if groups is not None and not groups:
        return {}
    query = select(GroupPeerRow.group_id, GroupPeerRow.peer_id).join(GroupRow, GroupRow.id == GroupPeerRow.group_id)
    query = query.where(GroupRow.account_id == account_id)
    if groups is not None:
        query = query.where(GroupRow.id.in_(groups))
    members: dict[GroupId, list[str]] = {}
    for group_id, peer_id in (await session.execute(query)).all():
        members.setdefault(GroupId(group_id), []).append(peer_id)
    return members


async def _domains(session: AsyncSession, account_id: AccountId) -> tuple[CustomDomain, ...]:
    rows = await session.scalars(select(DomainRow).where(DomainRow.account_id == account_id))
    return tuple(network_rows.domain_of(row) for row in rows.all())


async def _dns(session: AsyncSession, account_id: AccountId) -> Dns:
    servers = await session.scalars(select(NameserverGroupRow).where(NameserverGroupRow.account_id == account_id))
    zones = await session.scalars(select(ZoneRow).where(ZoneRow.account_id == account_id))
    return network_rows.dns_of(servers.all(), zones.all())


async def _networks(session: AsyncSession, account_id: AccountId) -> tuple[RoutedNetwork, ...]:
    query = select(NetworkRow).where(NetworkRow.account_id == account_id).order_by(NetworkRow.id)
    return tuple(network_rows.network_of(row) for row in (await session.scalars(query)).all())


async def _revocations(session: AsyncSession, account_id: AccountId) -> tuple[Revoked, ...]:
    query = select(RevocationRow).where(RevocationRow.account_id == account_id)
    rows = await session.scalars(query.order_by(RevocationRow.not_before, RevocationRow.id))
    return tuple(network_rows.revoked_of(row) for row in rows.all())
