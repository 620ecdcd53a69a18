"""The registry of proxies: who is connected where, and what a cluster of them can do."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from sqlalchemy import delete, func, or_, select, update

from netbird_management.model.clock import now
from netbird_management.model.domains import covers, is_ip, is_under
from netbird_management.model.errors import NotFound, PreconditionFailed
from netbird_management.model.ids import AccountId, ProxyId, TokenId
from netbird_management.model.services import Capabilities
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.store.engine import insert
from netbird_management.store.models import ProxyRow
from netbird_management.store.state import State

ACTIVE_SECONDS: Final = 120
"""A proxy whose last heartbeat is older is not counted."""
FORGET_SECONDS: Final = 3600
PROXIES_OF_A_TOKEN: Final = 1_000
"""Those that are gone count until they are forgotten."""


@dataclass(frozen=True, slots=True)
class Registration:
    """One connection of a proxy. `session_id` is new with each and fences what is written about it.

    `account_id` is the account of its token, `None` for a proxy that serves all.
    """

    proxy_id: ProxyId
    session_id: str
    cluster: str
    ip_address: str
    account_id: AccountId | None
    token_id: TokenId | None
    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class Cluster:
    """The proxies that declare one address, as an account sees them. `None` is "nobody reported"."""

    id: str
    address: str
    type: Literal["account", "shared"]
    online: bool
    connected_proxies: int
    supports_custom_ports: bool | None
    require_subdomain: bool | None
    supports_crowdsec: bool | None
    private: bool | None


async def register_proxy(state: State, registration: Registration) -> None:
    """A proxy connected: its whole row is written, over any earlier connection's."""
    moment = now()
    capabilities = registration.capabilities
    values = {
        "session_id": registration.session_id,
        "cluster_address": registration.cluster,
        "ip_address": registration.ip_address,
        "account_id": registration.account_id,
        "token_id": registration.token_id,
        "last_seen": moment,
        "connected_at": moment,
        "disconnected_at": None,
        "status": "connected",
        "supports_custom_ports": capabilities.supports_custom_ports,
        "require_subdomain": capabilities.require_subdomain,
        "supports_crowdsec": capabilities.supports_crowdsec,
        "private": capabilities.private,
    }
    async with state.write() as session:
        row = insert(session, ProxyRow).values(id=registration.proxy_id, **values)
        await session.execute(row.on_conflict_do_update(index_elements=[ProxyRow.id], set_=values))


async def room_for_proxy(state: State, proxy_id: ProxyId, token_id: TokenId | None) -> bool:
    """Whether one more may register with this token: known proxies have their place, until they are forgotten."""
    others = select(func.count()).select_from(ProxyRow).where(ProxyRow.token_id == token_id, ProxyRow.id != proxy_id)
    async with state.read() as session:
        return (await session.scalar(others) or 0) < PROXIES_OF_A_TOKEN


async def heartbeat_proxy(state: State, registration: Registration) -> bool:
    """The connection is alive. False if the row is gone or belongs to a newer connection: register again, or end."""
    alive = (
        update(ProxyRow)
        .where(ProxyRow.id == registration.proxy_id, ProxyRow.session_id == registration.session_id)
        .values(last_seen=now(), status="connected", disconnected_at=None)
        .returning(ProxyRow.id)
    )
    async with state.write() as session:
        return (await session.execute(alive)).first() is not None


async def disconnect_proxy(state: State, registration: Registration) -> bool:
    """The connection ended. False, and nothing written, if a newer one took its place."""
    moment = now()
    gone = (
        update(ProxyRow)
        .where(ProxyRow.id == registration.proxy_id, ProxyRow.session_id == registration.session_id)
        .values(last_seen=moment, status="disconnected", disconnected_at=moment)
        .returning(ProxyRow.id)
    )
    async with state.write() as session:
        return (await session.execute(gone)).first() is not None


async def disconnect_all_proxies(state: State) -> None:
    """At start: whoever is in the table is not connected to this process yet."""
    left = update(ProxyRow).where(ProxyRow.status == "connected")
    async with state.write() as session:
        await session.execute(left.values(status="disconnected", disconnected_at=now()))


async def forget_stale_proxies(state: State) -> None:
    """Deletes proxies not heard of for an hour, with what they reported."""
    async with state.write() as session:
        await session.execute(delete(ProxyRow).where(ProxyRow.last_seen < now() - timedelta(seconds=FORGET_SECONDS)))


def is_proved_address(state: State, address: str, account_id: AccountId) -> bool:
    """Whether an account's own proxies may declare this folded address.

    They may declare an IP address, and a name at or below a validated custom domain of the account.
    """
    if is_ip(address):
        return True
    account = state.snapshots.get(account_id)
    custom = account.custom_domain_over(address) if account is not None else None
    return custom is not None and custom.validated


async def proxy_id_is_free(state: State, proxy_id: ProxyId, account_id: AccountId | None) -> bool:
    """Whether a proxy of this account (`None`: of all) may have this id: no other proxy has it.

    An account's own token must not be enough to take a shared proxy's place.
    """
    async with state.read() as session:
        row = await session.get(ProxyRow, proxy_id)
    return row is None or row.account_id == account_id


async def address_is_free(state: State, address: str, account_id: AccountId) -> bool:
    """Whether no other account and no shared cluster has this folded address, one above it or one below it, connected
    or not."""
    others = select(ProxyRow.cluster_address).distinct()
    others = others.where(or_(ProxyRow.account_id.is_(None), ProxyRow.account_id != account_id))
    async with state.read() as session:
        taken = (await session.scalars(others)).all()
    return not any(is_under(address, other) or is_under(other, address) for other in taken)


async def shared_addresses(state: State) -> list[str]:
    """The addresses of the clusters that serve all accounts, connected or not, until they are forgotten."""
    shared = select(ProxyRow.cluster_address).where(ProxyRow.account_id.is_(None)).distinct()
    async with state.read() as session:
        return list((await session.scalars(shared)).all())


async def clusters_of(state: State, account_id: AccountId) -> list[Cluster]:
    """The clusters an account may use, its own first, then by address; offline ones until they are forgotten."""
    mine = or_(ProxyRow.account_id.is_(None), ProxyRow.account_id == account_id)
    async with state.read() as session:
        rows = (await session.scalars(select(ProxyRow).where(mine))).all()
    by_address: dict[str, list[ProxyRow]] = {}
    for row in rows:
        by_address.setdefault(row.cluster_address, []).append(row)
    cutoff = now() - timedelta(seconds=ACTIVE_SECONDS)
    found = [_cluster(address, rows, cutoff) for address, rows in by_address.items()]
    return sorted(found, key=lambda cluster: (cluster.type, cluster.address))


async def delete_cluster(state: State, account_id: AccountId, address: str) -> None:
    """Forgets an account's own proxies at an address. Raises `NotFound` if it has none there."""
    gone = delete(ProxyRow).where(ProxyRow.cluster_address == address, ProxyRow.account_id == account_id)
    async with state.write() as session:
        if (await session.execute(gone.returning(ProxyRow.id))).first() is None:
            raise NotFound(f"cluster {address} not found")


async def cluster_of_domain(state: State, account: AccountSnapshot, domain: str) -> Cluster:
    """Which cluster serves a folded domain: the one it lies under, else that of the longest custom domain above it.

    Raises `PreconditionFailed` if none does.
    """
    clusters = await clusters_of(state, account.account.id)
    for cluster in clusters:
        if cluster.online and covers(cluster.address, domain):
            return cluster
    custom = account.custom_domain_over(domain)
    for cluster in clusters:
        if custom is not None and cluster.address == custom.target_cluster:
            return cluster
    raise PreconditionFailed(f"could not derive cluster from domain {domain}: no connected proxy serves it")


def _cluster(address: str, rows: list[ProxyRow], cutoff: datetime) -> Cluster:
    active = [row for row in rows if row.status == "connected" and row.last_seen > cutoff]

    def any_of(values: Iterable[bool | None]) -> bool | None:
        reported = [value for value in values if value is not None]
        return any(reported) if reported else None

    crowdsec = [row.supports_crowdsec for row in active]
    return Cluster(
        id=min(row.id for row in rows),
        address=address,
        type="account" if any(row.account_id is not None for row in rows) else "shared",
        online=bool(active),
        connected_proxies=len(active),
        supports_custom_ports=any_of(row.supports_custom_ports for row in active),
        require_subdomain=any_of(row.require_subdomain for row in active),
        supports_crowdsec=None if all(value is None for value in crowdsec) else all(crowdsec),
        private=any_of(row.private for row in active),
    )
