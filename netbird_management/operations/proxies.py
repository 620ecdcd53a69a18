"""The registry of proxies: connections, clusters and their capabilities."""

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

# Maximum age of the last heartbeat of a connected proxy; an older proxy counts as disconnected.
ACTIVE_SECONDS: Final = 120
FORGET_SECONDS: Final = 3600
# Maximum number of proxies of a token. Disconnected proxies count until they are forgotten.
PROXIES_OF_A_TOKEN: Final = 1_000


@dataclass(frozen=True, slots=True)
class Registration:
    """One connection of a proxy. Each connection has a new `session_id`; writes for an older connection are ignored.

    `account_id` is the account of its token, `None` for a proxy that serves all accounts.
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
    """The proxies that declare an address, as an account sees them. A capability of `None` means that no proxy reported
    it."""

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
    """Records a connection of a proxy, in place of any earlier connection of the proxy."""
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
    """True if the proxy may register with this token. A registered proxy counts until it is forgotten."""
    others = select(func.count()).select_from(ProxyRow).where(ProxyRow.token_id == token_id, ProxyRow.id != proxy_id)
    async with state.read() as session:
        return (await session.scalar(others) or 0) < PROXIES_OF_A_TOKEN


async def heartbeat_proxy(state: State, registration: Registration) -> bool:
    """Records that the connection is alive. Returns False if the row was deleted or belongs to a newer connection; the
    caller then registers again or ends."""
    alive = (
        update(ProxyRow)
        .where(ProxyRow.id == registration.proxy_id, ProxyRow.session_id == registration.session_id)
        .values(last_seen=now(), status="connected", disconnected_at=None)
        .returning(ProxyRow.id)
    )
    async with state.write() as session:
        return (await session.execute(alive)).first() is not None


async def disconnect_proxy(state: State, registration: Registration) -> bool:
    """Records that the connection ended. Returns False, without a change, if a newer connection replaced it."""
    moment = now()
    disconnection = (
        update(ProxyRow)
        .where(ProxyRow.id == registration.proxy_id, ProxyRow.session_id == registration.session_id)
        .values(last_seen=moment, status="disconnected", disconnected_at=moment)
        .returning(ProxyRow.id)
    )
    async with state.write() as session:
        return (await session.execute(disconnection)).first() is not None


async def disconnect_all_proxies(state: State) -> None:
    """Marks all proxies as disconnected; called at start, when none is connected to this process yet."""
    left = update(ProxyRow).where(ProxyRow.status == "connected")
    async with state.write() as session:
        await session.execute(left.values(status="disconnected", disconnected_at=now()))


async def forget_stale_proxies(state: State) -> None:
    """Deletes proxies without a heartbeat for an hour, with their reports."""
    async with state.write() as session:
        await session.execute(delete(ProxyRow).where(ProxyRow.last_seen < now() - timedelta(seconds=FORGET_SECONDS)))


def is_proved_address(state: State, address: str, account_id: AccountId) -> bool:
    """True if an account's own proxies may declare this folded address: an IP address, or a name at or below a
    validated custom domain of the account."""
    if is_ip(address):
        return True
    account = state.snapshots.get(account_id)
    custom = account.custom_domain_over(address) if account is not None else None
    return custom is not None and custom.validated


async def proxy_id_is_free(state: State, proxy_id: ProxyId, account_id: AccountId | None) -> bool:
    """True if no proxy of another account (`None`: of all accounts) uses this id, so that an account's token is not
    enough to replace a shared proxy."""
    async with state.read() as session:
        row = await session.get(ProxyRow, proxy_id)
    return row is None or row.account_id == account_id


async def address_is_free(state: State, address: str, account_id: AccountId) -> bool:
    """True if no other account and no shared cluster, connected or not, uses this folded address, a parent or a
    subdomain."""
    others = select(ProxyRow.cluster_address).distinct()
    others = others.where(or_(ProxyRow.account_id.is_(None), ProxyRow.account_id != account_id))
    async with state.read() as session:
        taken = (await session.scalars(others)).all()
    return not any(is_under(address, other) or is_under(other, address) for other in taken)


async def shared_addresses(state: State) -> list[str]:
    """Addresses of the clusters that serve all accounts, connected or not, until their proxies are forgotten."""
    shared = select(ProxyRow.cluster_address).where(ProxyRow.account_id.is_(None)).distinct()
    async with state.read() as session:
        return list((await session.scalars(shared)).all())


async def clusters_of(state: State, account_id: AccountId) -> list[Cluster]:
    """Clusters that an account may use: its own first, then by address; disconnected ones until they are forgotten."""
    usable = or_(ProxyRow.account_id.is_(None), ProxyRow.account_id == account_id)
    async with state.read() as session:
        rows = (await session.scalars(select(ProxyRow).where(usable))).all()
    by_address: dict[str, list[ProxyRow]] = {}
    for row in rows:
        by_address.setdefault(row.cluster_address, []).append(row)
    cutoff = now() - timedelta(seconds=ACTIVE_SECONDS)
    clusters = [_cluster(address, rows, cutoff) for address, rows in by_address.items()]
    return sorted(clusters, key=lambda cluster: (cluster.type, cluster.address))


async def delete_cluster(state: State, account_id: AccountId, address: str) -> None:
    """Deletes an account's own proxies at an address. Raises `NotFound` if it has none there."""
    deletion = delete(ProxyRow).where(ProxyRow.cluster_address == address, ProxyRow.account_id == account_id)
    async with state.write() as session:
        if (await session.execute(deletion.returning(ProxyRow.id))).first() is None:
            raise NotFound(f"cluster {address} not found")


async def cluster_of_domain(state: State, account: AccountSnapshot, domain: str) -> Cluster:
    """The cluster for a folded domain: the cluster whose address covers it, else that of its longest custom domain.

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
