"""Statuses of proxies that do not say who they are, as NetBird's do not: several may share a token."""

from __future__ import annotations

from typing import Any

import grpc.aio
import pytest

from netbird_management.grpc.connections import Connection, Connections, ProxyCall
from netbird_management.model.ids import ProxyId, ServiceId
from netbird_management.model.services import Capabilities, ProxyStatus, Service, Status
from netbird_management.operations.proxies import Registration
from netbird_management.operations.proxy_tokens import ProxyToken
from netbird_management.operations.statuses import proxy_statuses
from netbird_wire.proxy_service_pb2 import (
    PROXY_STATUS_ACTIVE,
    PROXY_STATUS_CERTIFICATE_FAILED,
    SendStatusUpdateRequest,
)
from netbird_wire.proxy_service_pb2 import (
    ProxyStatus as WireStatus,
)
from tests.netbird_management.grpc.conftest import FakeProxy, Lab


class Unnamed(FakeProxy):
    """A proxy whose calls carry only the token."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),)


def channel(lab: Lab) -> grpc.aio.Channel:
    """A connection of its own: channels share one otherwise."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{lab.port}", options=(("grpc.use_local_subchannel_pool", 1),))


async def report(proxy: FakeProxy, service: Service, status: WireStatus.ValueType) -> None:
    request = SendStatusUpdateRequest(service_id=service.id, account_id=service.account_id, status=status)
    await proxy.unary("SendStatusUpdate", request)


async def statuses(lab: Lab, service: Service) -> dict[str, ProxyStatus]:
    return {stored.proxy_id: stored for stored in await proxy_statuses(lab.home.state, service.id)}


async def test_each_status_counts_for_its_own_proxy(lab: Lab) -> None:
    """Two of NetBird's proxies and one of ours share a token; each reports something else."""
    service = await lab.service("app")
    async with channel(lab) as first_channel, channel(lab) as second_channel, channel(lab) as own_channel:
        first = Unnamed(first_channel, lab.token, proxy_id="first")
        second = Unnamed(second_channel, lab.token, proxy_id="second")
        own = FakeProxy(own_channel, lab.token, proxy_id="own")
        for proxy in (first, second, own):
            await proxy.connect()
        await report(second, service, PROXY_STATUS_ACTIVE)
        await report(first, service, PROXY_STATUS_CERTIFICATE_FAILED)
        await report(own, service, PROXY_STATUS_ACTIVE)
        stored = await statuses(lab, service)

    assert {name: status.status for name, status in stored.items()} == {
        "first": Status.CERTIFICATE_FAILED,
        "second": Status.ACTIVE,
        "own": Status.ACTIVE,
    }


async def test_a_report_by_another_connection_counts_too(lab: Lab) -> None:
    """A proxy may send it by a second connection; then its address tells, and one proxy alone is always meant."""
    service = await lab.service("app")
    async with channel(lab) as streams, channel(lab) as calls:
        proxy = Unnamed(streams, lab.token, proxy_id="first")
        await proxy.connect()
        await report(Unnamed(calls, lab.token), service, PROXY_STATUS_ACTIVE)
        stored = await statuses(lab, service)

    assert {name: status.status for name, status in stored.items()} == {"first": Status.ACTIVE}


def connection(proxy_id: str, call: ProxyCall, *services: str) -> Connection:
    capabilities = Capabilities(None, None, None, None, None)
    registration = Registration(ProxyId(proxy_id), proxy_id, "px.test", "", None, None, capabilities)
    made = Connection(registration, _token("t"), "hash", caller=call)
    made.sent = dict.fromkeys(map(ServiceId, services))
    return made


def _token(id_: str) -> ProxyToken:
    fields: dict[str, Any] = dict.fromkeys(ProxyToken.__dataclass_fields__)
    return ProxyToken(**{**fields, "id": id_})


LIVE = (
    connection("one", ProxyCall("ipv4:192.0.2.1:1", "192.0.2.1"), "app"),
    connection("two", ProxyCall("ipv4:192.0.2.1:2", "192.0.2.1"), "app"),
    connection("far", ProxyCall("ipv4:192.0.2.9:1", "192.0.2.9"), "app"),
    connection("without", ProxyCall("ipv4:192.0.2.8:1", "192.0.2.8"), "other"),
    connection("named", ProxyCall("ipv4:192.0.2.7:1", "192.0.2.7", names_proxy=True), "app"),
)


@pytest.mark.parametrize(
    ("origin", "address", "meant"),
    [
        ("ipv4:192.0.2.1:2", "192.0.2.1", {"two"}),
        ("ipv4:192.0.2.9:77", "192.0.2.9", {"far"}),
        ("ipv4:192.0.2.1:77", "192.0.2.1", {"one", "two"}),
        ("ipv4:192.0.2.8:1", "192.0.2.8", {"one", "two", "far"}),
        ("ipv4:192.0.2.7:1", "192.0.2.7", {"one", "two", "far"}),
        ("", "", {"one", "two", "far"}),
    ],
    ids=["connection", "address", "shared address", "has not the service", "names itself", "unknown"],
)
async def test_nobody_reports_for_nobody(origin: str, address: str, meant: set[str]) -> None:
    """The connection tells, else the address; replicas that look alike share a report. Never does a proxy that names
    itself in its calls, or one that has not the service, get another's."""
    connections = Connections()
    for live in LIVE:
        connections.join(live)

    proxies = connections.of_unnamed(ProxyCall(origin, address), "t", ServiceId("app"))
    assert {live.proxy_id for live in proxies} == meant
    assert connections.of_unnamed(ProxyCall(origin, address), "another token", ServiceId("app")) == []
