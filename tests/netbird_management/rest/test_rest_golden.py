"""Answers as clients of the public API know them, byte for byte."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netbird_management.model.clock import now
from netbird_management.model.services import AccessLogEntry
from netbird_management.operations.groups import create_group
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.proxies import Registration
from tests.netbird_management.conftest import Api
from tests.netbird_management.reports import add_access_log_entries

_GOLDEN = Path(__file__).parents[2] / "corpus" / "golden" / "rest.jsonl"
GOLDEN: dict[str, dict[str, Any]] = {
    record["name"]: record for record in map(json.loads, _GOLDEN.read_text().splitlines())
}
ENGINEERING, BOB = "dc1ce8dqmd2umjrode40", "dc1ce9lqmd2umjrodeig"


async def _replay(api: Api, name: str, **known: str) -> tuple[int, str, str]:
    """The recorded call with our ids for theirs: status, body, and the recorded body with our ids and moments."""
    record = GOLDEN[name]
    request, expected = record["request_text"] or "", record["response_text"]
    for theirs, ours in known.items():
        request, expected = request.replace(theirs, ours), expected.replace(theirs, ours)
    answer = await api.client.request(
        record["method"], record["path"], content=request, headers={"content-type": "application/json"}
    )
    ours, theirs = answer.json(), json.loads(expected)
    if isinstance(ours, dict) and "id" in theirs:
        expected = expected.replace(theirs["id"], ours["id"])
        expected = expected.replace(_created(theirs), _created(ours))
    return answer.status_code, answer.text, expected


def _created(answer: dict[str, Any]) -> str:
    return str(answer["meta"]["created_at"] if "meta" in answer else answer["created_at"])


@pytest.mark.parametrize("name", ["01-public-direct", "02-private", "04-paths", "29-private2"])
async def test_services_are_answered_alike(api: Api, proxy: Registration, name: str) -> None:
    """A created service comes back with the members, order, defaults and empty secrets that clients expect."""
    group = await create_group(api.home.state, api.home.account_id, name="engineering")
    status, body, expected = await _replay(api, name, **{ENGINEERING: group.id})
    assert (status, body) == (200, expected)


async def test_a_peer_target_shows_the_peers_address(api: Api, proxy: Registration) -> None:
    """The host of a peer target is the peer's overlay address."""
    peer, _ = await create_stock_peer(api.home.state, api.home.account_id, name="bob", user_id=None)
    status, body, expected = await _replay(api, "05-peer-target", **{BOB: peer.id, "100.106.50.72": str(peer.ip)})
    assert (status, body) == (200, expected)


@pytest.mark.parametrize(
    "name", ["10-err-dup", "14-err-notfound", "31-err-badcidr", "34-err-peer", "35-err-header", "40-token-err"]
)
async def test_refusals_are_answered_alike(api: Api, proxy: Registration, name: str) -> None:
    """Status and body of a refusal; only the spelling of the offending value differs, which we show as it was sent."""
    await _replay(api, "01-public-direct")
    status, body, expected = await _replay(api, name)
    assert (status, body.lower()) == (GOLDEN[name]["status"], expected.lower())


@pytest.mark.parametrize(
    "name", ["16-clusters", "17-domains", "19-peers", "20-groups", "22-accesslog", "23-users", "37-policies"]
)
async def test_lists_have_the_same_members_in_the_same_order(api: Api, proxy: Registration, name: str) -> None:
    """Each list item has at least the recorded members, in alphabetical order."""
    await create_stock_peer(api.home.state, api.home.account_id, name="alice", user_id=None)
    entry = AccessLogEntry(
        id="1",
        account_id=api.home.account_id,
        service_id="s",
        timestamp=now(),
        source_ip="127.0.0.1",
        method="GET",
        host="h",
        path="/",
        duration_ms=1,
        status_code=403,
        bytes_upload=0,
        bytes_download=1,
        reason="Authentication failed",
        auth_method="oidc",
        protocol="http",
    )
    await add_access_log_entries(api.home.state, [entry, replace(entry, id="2")])
    answer = await api.client.get(GOLDEN[name]["path"])
    theirs, ours = json.loads(GOLDEN[name]["response_text"]), answer.json()
    assert answer.text.endswith("\n")
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        theirs, ours = theirs["data"], ours["data"]
    assert list(ours[0]) == list(theirs[0])


async def test_a_proxy_token_is_shown_once(api: Api) -> None:
    """Creating answers with the text; listing never does."""
    created = await api.ok("POST", "/api/reverse-proxies/proxy-tokens", {"name": "t2", "expires_in": 3600})
    assert list(created) == list(json.loads(GOLDEN["38-token-new"]["response_text"]))
    listed = await api.ok("GET", "/api/reverse-proxies/proxy-tokens")
    assert created["plain_token"] not in json.dumps(listed)
    assert await api.ok("DELETE", f"/api/reverse-proxies/proxy-tokens/{created['id']}") == {}
    assert (await api.ok("GET", "/api/reverse-proxies/proxy-tokens"))[0]["revoked"] is True
