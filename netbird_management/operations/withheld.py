"""Reasons why management withholds services from a proxy, stored with the proxy's own reports."""

from collections.abc import Mapping

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from netbird_management.model.clock import now
from netbird_management.model.ids import ProxyId, ServiceId
from netbird_management.model.services import Status
from netbird_management.store.engine import insert
from netbird_management.store.models import ProxyRow, ServiceRow, ServiceStatusRow
from netbird_management.store.state import State


async def replace_withheld(state: State, proxy_id: ProxyId, reasons: Mapping[ServiceId, str]) -> None:
    """Replaces all reasons of a proxy, when management sends it a snapshot: only these services are withheld."""
    rows = ServiceStatusRow
    over = delete(rows).where(rows.proxy_id == proxy_id, rows.withheld != "", rows.service_id.not_in(list(reasons)))
    async with state.write() as session:
        await session.execute(over)
        await _insert(session, proxy_id, reasons)


async def note_withheld(state: State, proxy_id: ProxyId, changes: Mapping[ServiceId, str | None]) -> None:
    """Records the outcome of changes for a proxy: the reason why a service is withheld, "" if it is sent, `None` if it
    no longer belongs to this proxy."""
    rows = ServiceStatusRow
    sent = [service_id for service_id, reason in changes.items() if reason == ""]
    removed = [service_id for service_id, reason in changes.items() if reason is None]
    async with state.write() as session:
        of_proxy = delete(rows).where(rows.proxy_id == proxy_id)
        await session.execute(of_proxy.where(rows.service_id.in_(sent), rows.withheld != ""))
        await session.execute(of_proxy.where(rows.service_id.in_(removed)))
        await _insert(session, proxy_id, {id_: reason for id_, reason in changes.items() if reason})


async def _insert(session: AsyncSession, proxy_id: ProxyId, reasons: Mapping[ServiceId, str]) -> None:
    if not reasons or await session.get(ProxyRow, proxy_id) is None:
        return
    existing = (await session.scalars(select(ServiceRow.id).where(ServiceRow.id.in_(list(reasons))))).all()
    for service_id in existing:
        values = {
            "status": Status.PENDING.value,
            "error_message": "",
            "withheld": reasons[ServiceId(service_id)][:4096],
            "tunnel_ip": None,
            "https_port": 0,
            "http_port": 0,
            "updated_at": now(),
        }
        row = insert(session, ServiceStatusRow).values(service_id=service_id, proxy_id=proxy_id, **values)
        key = [ServiceStatusRow.service_id, ServiceStatusRow.proxy_id]
        await session.execute(row.on_conflict_do_update(index_elements=key, set_=values))
