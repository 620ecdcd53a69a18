"""States of services on proxies: stored for each pair; a service shows the worst state among connected proxies."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update

from netbird_management.model.clock import now
from netbird_management.model.ids import AccountId, ProxyId, ServiceId
from netbird_management.model.services import SEVERITY, InboundListener, ProxyStatus, Status
from netbird_management.operations.proxies import ACTIVE_SECONDS
from netbird_management.store.engine import insert
from netbird_management.store.models import ProxyRow, ServiceRow, ServiceStatusRow
from netbird_management.store.state import State


@dataclass(frozen=True, slots=True)
class Report:
    """A proxy's report about a service, and the reason why management withholds the service from that proxy, if any."""

    service_id: ServiceId
    proxy_id: ProxyId
    status: Status
    error_message: str = ""
    withheld: str = ""
    inbound_listener: InboundListener | None = None


async def set_service_statuses(state: State, reports: Sequence[Report]) -> set[Report]:
    """Stores reports in one transaction; of several about the same pair, the last one counts. Returns the reports whose
    service or proxy does not exist."""
    latest = {(report.service_id, report.proxy_id): report for report in reports}
    services = select(ServiceRow.id).where(ServiceRow.id.in_({service_id for service_id, _ in latest}))
    proxies = select(ProxyRow.id).where(ProxyRow.id.in_({proxy_id for _, proxy_id in latest}))
    moment = now()
    async with state.write() as session:
        here = frozenset((await session.scalars(services)).all()), frozenset((await session.scalars(proxies)).all())
        rows = [
            {
                "service_id": report.service_id,
                "proxy_id": report.proxy_id,
                "status": report.status.value,
                "error_message": report.error_message[:4096],
                "withheld": report.withheld[:4096],
                "tunnel_ip": None if report.inbound_listener is None else report.inbound_listener.tunnel_ip,
                "https_port": 0 if report.inbound_listener is None else report.inbound_listener.https_port,
                "http_port": 0 if report.inbound_listener is None else report.inbound_listener.http_port,
                "updated_at": moment,
            }
            for report in latest.values()
            if report.service_id in here[0] and report.proxy_id in here[1]
        ]
        if rows:
            statement = insert(session, ServiceStatusRow)
            key = [ServiceStatusRow.service_id, ServiceStatusRow.proxy_id]
            changed = {name: statement.excluded[name] for name in rows[0] if name not in ("service_id", "proxy_id")}
            await session.execute(statement.on_conflict_do_update(index_elements=key, set_=changed), rows)
    return {report for report in reports if report.service_id not in here[0] or report.proxy_id not in here[1]}


async def set_certificate_issued(state: State, account_id: AccountId, service_id: ServiceId) -> None:
    """Records that a proxy got a certificate for the service's domain now. Subscribers are not notified."""
    issued = update(ServiceRow).where(ServiceRow.id == service_id, ServiceRow.account_id == account_id)
    async with state.write() as session:
        await session.execute(issued.values(certificate_issued_at=now()))


async def proxy_statuses(state: State, service_id: ServiceId) -> list[ProxyStatus]:
    """The state of a service on every proxy, disconnected proxies included, ordered by proxy."""
    query = (
        select(ServiceStatusRow, ProxyRow)
        .join(ProxyRow, ProxyRow.id == ServiceStatusRow.proxy_id)
        .where(ServiceStatusRow.service_id == service_id)
        .order_by(ServiceStatusRow.proxy_id)
    )
    async with state.read() as session:
        rows = (await session.execute(query)).all()
    return [_proxy_status(row, proxy) for row, proxy in rows]


def _proxy_status(row: ServiceStatusRow, proxy: ProxyRow) -> ProxyStatus:
    connected = proxy.status == "connected" and proxy.last_seen > now() - timedelta(seconds=ACTIVE_SECONDS)
    if not connected or (proxy.connected_at is not None and row.updated_at < proxy.connected_at):
        return ProxyStatus(
            ProxyId(row.proxy_id), Status.PENDING, connected, withheld=row.withheld, updated_at=row.updated_at
        )
    listening = None if row.tunnel_ip is None else InboundListener(row.tunnel_ip, row.https_port, row.http_port)
    return ProxyStatus(
        proxy_id=ProxyId(row.proxy_id),
        status=Status(row.status),
        error_message=row.error_message,
        withheld=row.withheld,
        inbound_listener=listening,
        updated_at=row.updated_at,
    )


async def worst_statuses(
    state: State, account_id: AccountId, service_id: ServiceId | None = None
) -> dict[ServiceId, Status]:
    """The status to show for each service of an account, or for one service: the worst among its connected proxies.
    Every service has an entry."""
    query = (
        select(ServiceStatusRow.service_id, ServiceStatusRow.status)
        .join(ServiceRow, ServiceRow.id == ServiceStatusRow.service_id)
        .join(ProxyRow, ProxyRow.id == ServiceStatusRow.proxy_id)
        .where(
            ServiceRow.account_id == account_id,
            ProxyRow.status == "connected",
            ProxyRow.last_seen > now() - timedelta(seconds=ACTIVE_SECONDS),
        )
    )
    if service_id is not None:
        query = query.where(ServiceStatusRow.service_id == service_id)
    worst: dict[ServiceId, Status] = {}
    async with state.read() as session:
        for of_service, text in (await session.execute(query)).all():
            status, id_ = Status(text), ServiceId(of_service)
            if id_ not in worst or SEVERITY.index(status) > SEVERITY.index(worst[id_]):
                worst[id_] = status
    return worst


async def certificates_issued(
    state: State, account_id: AccountId, service_id: ServiceId | None = None
) -> dict[ServiceId, datetime]:
    """Time of the latest certificate of each service of an account, or of one service; services without a certificate
    are left out. Snapshots do not contain it, as management does not send it to proxies."""
    query = select(ServiceRow.id, ServiceRow.certificate_issued_at).where(
        ServiceRow.account_id == account_id, ServiceRow.certificate_issued_at.is_not(None)
    )
    if service_id is not None:
        query = query.where(ServiceRow.id == service_id)
    async with state.read() as session:
        return {ServiceId(id_): moment for id_, moment in (await session.execute(query)).all() if moment is not None}


async def inbound_listeners(state: State, account_id: AccountId) -> dict[str, list[InboundListener]]:
    """Listeners of connected proxies inside the account's tunnel, by the address of their cluster; each once."""
    query = (
        select(
            ProxyRow.cluster_address,
            ServiceStatusRow.tunnel_ip,
            ServiceStatusRow.https_port,
            ServiceStatusRow.http_port,
        )
        .join(ProxyRow, ProxyRow.id == ServiceStatusRow.proxy_id)
        .join(ServiceRow, ServiceRow.id == ServiceStatusRow.service_id)
        .where(
            ServiceRow.account_id == account_id,
            ServiceStatusRow.tunnel_ip.is_not(None),
            ProxyRow.status == "connected",
            ProxyRow.last_seen > now() - timedelta(seconds=ACTIVE_SECONDS),
        )
        .distinct()
    )
    listeners: dict[str, list[InboundListener]] = {}
    async with state.read() as session:
        for address, tunnel_ip, https_port, http_port in sorted((await session.execute(query)).all()):
            listeners.setdefault(address, []).append(InboundListener(tunnel_ip or "", https_port, http_port))
    return listeners
