"""NetBird's public API: each fixed path exists or is refused by name, and none is taken for an id."""

import json
import logging
from typing import Any

import httpx
import pytest

from netbird_management.operations.users import create_token
from netbird_management.rest import unsupported
from netbird_management.rest.app import create_app
from tests.netbird_management.conftest import Api, Home, context_for

READ = [
    "/reverse-proxies/services",
    "/reverse-proxies/domains",
    "/reverse-proxies/clusters",
    "/reverse-proxies/proxy-tokens",
    "/events/proxy",
    "/events",
    "/events/audit",
    "/groups",
    "/users",
    "/users/current",
    "/instance",
    "/peers",
    "/setup-keys",
    "/policies",
    "/dns/nameservers",
    "/dns/settings",
    "/dns/zones",
    "/networks",
    "/networks/resources",
    "/networks/routers",
    "/accounts",
]
"""The lists and single things that clients read, without an id."""
WRITTEN = [
    "POST /reverse-proxies/services",
    "POST /reverse-proxies/domains",
    "POST /reverse-proxies/proxy-tokens",
    "POST /groups",
    "POST /users",
    "POST /users/x/tokens",
    "POST /setup",
    "POST /setup-keys",
    "POST /policies",
    "POST /dns/nameservers",
    "PUT /dns/settings",
    "POST /dns/zones",
    "POST /dns/zones/x/records",
    "POST /networks",
    "POST /networks/x/resources",
    "POST /networks/x/routers",
    "PUT /accounts/x",
    "POST /users/x/approve",
    "DELETE /users/x/reject",
    "POST /users/x/invite",
]
"""What clients write; the ids are of nothing."""


@pytest.mark.parametrize("path", READ)
async def test_what_clients_read_is_there(api: Api, path: str) -> None:
    """200 for the owner, with JSON."""
    await api.ok("GET", f"/api{path}")


@pytest.mark.parametrize("line", WRITTEN)
async def test_what_clients_write_is_judged(api: Api, line: str) -> None:
    """A refusal says what is wrong; no path is unknown, and none lacks the method."""
    method, path = line.split()
    status, message = await api.refused(method, f"/api{path}", {})
    assert (status, message) != (404, "not found")
    assert status != 405


async def test_parts_that_are_not_supported_say_so(api: Api) -> None:
    """Lists of what there cannot be are empty; everything else about it is refused by name."""
    for path, (_, name) in unsupported.EMPTY.items():
        assert await api.ok("GET", f"/api{path}") == []
        for method, at in (("POST", path), ("PUT", f"{path}/x"), ("DELETE", f"{path}/x"), ("GET", f"{path}/x")):
            assert await api.refused(method, f"/api{at}") == (501, f"not supported by this management: {name}".lower())
    for path, name in unsupported.REFUSED.items():
        at = path.replace("{rest:path}", "a/b").replace("{rest}", "x")
        assert await api.refused("GET", f"/api{at}") == (501, f"not supported by this management: {name}".lower())


async def test_all_resources_and_routers_are_listed(api: Api) -> None:
    """Of every network, as each network lists its own."""
    for name in ("one", "two"):
        network = (await api.ok("POST", "/api/networks", {"name": name}))["id"]
        body = {"name": name, "address": f"{name}.test", "enabled": True, "groups": []}
        await api.ok("POST", f"/api/networks/{network}/resources", body)
        router = {"metric": 1, "masquerade": True, "enabled": True, "peer_groups": [api.home.snapshot.group_all.id]}
        await api.ok("POST", f"/api/networks/{network}/routers", router)
    assert [each["name"] for each in await api.ok("GET", "/api/networks/resources")] == ["one", "two"]
    assert len(await api.ok("GET", "/api/networks/routers")) == 2


async def test_a_group_that_headers_cannot_name_says_so(api: Api) -> None:
    """A name outside ASCII is kept, and the answer warns of what upstreams get."""
    plain, other = [await api.ok("POST", "/api/groups", {"name": name}) for name in ("team", "équipe")]
    assert "warning" not in plain
    assert (other["name"], "ASCII" in other["warning"]) == ("équipe", True)
    shown = {group["name"]: "warning" in group for group in await api.ok("GET", "/api/groups")}
    assert (shown["team"], shown["équipe"]) == (False, True)


DASHBOARD = "https://dashboard.lab.test"


async def _cross(home: Home, origins: tuple[str, ...], origin: str, method: str = "OPTIONS") -> httpx.Response:
    app = create_app(context_for(home), allowed_origins=origins)
    headers = {"origin": origin}
    if method == "OPTIONS":
        headers |= {"access-control-request-method": "PUT", "access-control-request-headers": "authorization"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.request(method, "/api/groups", headers=headers)


async def test_pages_of_named_sites_may_call(home: Home) -> None:
    """Only those that the operator names, and never with cookies."""
    for method in ("OPTIONS", "GET"):
        allowed = await _cross(home, (DASHBOARD,), DASHBOARD, method)
        assert allowed.headers["access-control-allow-origin"] == DASHBOARD
        assert "access-control-allow-credentials" not in allowed.headers
        for refused in (
            await _cross(home, (DASHBOARD,), "https://evil.test", method),
            await _cross(home, (), DASHBOARD, method),
        ):
            assert "access-control-allow-origin" not in refused.headers


def _lines(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.getMessage() == name]


async def test_each_request_has_a_line_and_an_id(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """Who asked for what, how it ended and under which id; nothing of the query or of a token."""
    caplog.set_level(logging.INFO)
    _, secret = await create_token(api.home.state, api.home.owner, name="t", days=1, created_by=api.home.owner.id)

    answer = await api.call("GET", f"/api/groups?name={secret}")
    refused = await api.call("GET", f"/api/users/invites/{secret}", headers={"authorization": f"Bearer {secret}x"})

    first, second = _lines(caplog, "rest.request")
    assert (first["request_id"], first["method"], first["path"]) == (
        answer.headers["x-request-id"],
        "GET",
        "/api/groups",
    )
    assert (first["status"], first["user_id"]) == (404, api.home.owner.id)
    assert (second["request_id"], second["status"], second["user_id"]) == (refused.headers["x-request-id"], 401, "")
    (rejection,) = _lines(caplog, "rest.authentication.refused")
    assert rejection["request_id"] == refused.headers["x-request-id"]
    assert api.home.state.counters["rest_authentications_refused"] == 1
    assert secret not in json.dumps(
        [vars(record) for record in caplog.records if record.name.startswith("netbird")], default=str
    )
