"""The access log's filters, orders and limits, one by one."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from netbird_management.model.accounts import Role
from netbird_management.model.ids import ProxyId
from netbird_management.model.services import AccessLogEntry, InboundListener, Status
from netbird_management.operations.proxies import Registration
from netbird_management.operations.users import create_user
from tests.netbird_management.conftest import Api
from tests.netbird_management.reports import add_access_log_entries, report_status

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def logged(api: Api) -> Api:
    """Three entries: a of alice, b of nobody that failed, c to another host."""
    state, account_id = api.home.state, api.home.account_id
    alice = await create_user(state, account_id, role=Role.USER, email="Alice@lab.test", name="Alice Liddell")
    first = AccessLogEntry(
        "a", account_id, "s", START, "192.0.2.1", "GET", "one.test", "/Alpha_1", 5, 200, 0, 1, user_id=alice.id
    )
    second = replace(
        first,
        id="b",
        timestamp=START + timedelta(hours=1),
        method="POST",
        path="/beta",
        status_code=403,
        duration_ms=9,
        user_id="",
        reason="Authentication failed",
        auth_method="oidc",
        source_ip="192.0.2.2",
    )
    third = replace(first, id="c", timestamp=START + timedelta(hours=2), host="two.test", duration_ms=1, user_id="x")
    await add_access_log_entries(state, [first, second, third])
    return api


async def _found(api: Api, **query: Any) -> list[str]:
    answer = await api.ok("GET", "/api/events/proxy", params=query)
    return [entry["id"] for entry in answer["data"]]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({}, "cba"),
        ({"sort_order": "ASC"}, "abc"),
        ({"sort_by": "duration"}, "bac"),
        ({"sort_by": "url", "sort_order": "asc"}, "abc"),
        ({"sort_by": "status_code"}, "bca"),
        ({"sort_by": "nonsense", "sort_order": "nonsense"}, "cba"),
        ({"host": "one.test"}, "ba"),
        ({"method": "POST"}, "b"),
        ({"source_ip": "192.0.2.2"}, "b"),
        ({"source_ip": "192.0.2"}, ""),
        ({"path": "ALPHA"}, "ca"),
        ({"path": "a_1"}, "ca"),
        ({"path": "a%1"}, ""),
        ({"status": "success"}, "ca"),
        ({"status": "failed"}, "b"),
        ({"status": "maybe"}, "cba"),
        ({"status_code": 403}, "b"),
        ({"status_code": -1}, "cba"),
        ({"user_email": "alice@"}, "a"),
        ({"user_name": "liddell"}, "a"),
        ({"user_name": "nobody"}, "cba"),
        ({"search": "two.test/alpha"}, "c"),
        ({"search": "liddell"}, "a"),
        ({"search": "192.0.2.2"}, "b"),
        ({"search": "%"}, ""),
        ({"start_date": "2026-01-01T01:00:00Z"}, "cb"),
        ({"end_date": "2026-01-01T02:00:00+01:00"}, "ba"),
        ({"start_date": "yesterday", "end_date": "2026-01-01"}, "cba"),
        ({"page": 2, "page_size": 2}, "a"),
        ({"page": 9}, ""),
        ({"page": 0, "page_size": 0}, "cba"),
    ],
)
async def test_each_filter(logged: Api, query: dict[str, Any], wanted: str) -> None:
    """What it finds and in which order; what makes no sense is ignored."""
    assert await _found(logged, **query) == list(wanted)


async def test_pages_are_capped(logged: Api) -> None:
    """A hundred at a time, whatever is asked for."""
    answer = await logged.ok("GET", "/api/events/proxy", params={"page_size": 5000})
    assert (answer["page_size"], answer["total_records"], answer["total_pages"]) == (100, 3, 1)


async def test_clusters_show_where_they_serve_inside(api: Api, proxy: Registration) -> None:
    """Each place in the tunnel once, while its proxy lives."""
    target = {
        "target_id": "px.test",
        "target_type": "cluster",
        "protocol": "http",
        "host": "127.0.0.1",
        "port": 1,
        "enabled": True,
        "options": {"direct_upstream": True},
    }
    for name in ("one", "two"):
        given = {"name": name, "domain": f"{name}.px.test", "enabled": True, "targets": [target]}
        made = await api.ok("POST", "/api/reverse-proxies/services", given)
        await report_status(
            api.home.state,
            made["id"],
            ProxyId("proxy-1"),
            Status.ACTIVE,
            inbound_listener=InboundListener("100.64.0.9", 0, 80),
        )
    (cluster,) = await api.ok("GET", "/api/reverse-proxies/clusters")
    assert cluster["inbound_listeners"] == [{"tunnel_ip": "100.64.0.9", "http_port": 80}]
