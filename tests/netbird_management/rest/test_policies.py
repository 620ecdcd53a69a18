"""Policies: what they may say, and whose maps they change."""

from typing import Any

import pytest

from netbird_management.compute.network_map import NetworkMaps
from netbird_management.operations.peers import create_stock_peer
from tests.netbird_management.conftest import Api, context_for

POLICIES = "/api/policies"


def rule(**fields: Any) -> dict[str, Any]:
    return {"name": "r", "enabled": True, "action": "accept", "bidirectional": False, "protocol": "tcp", **fields}


async def test_a_policy_opens_ports_between_two_groups(api: Api) -> None:
    """Created it shows in the maps, changed it does otherwise, deleted it is gone; ids stay."""
    state, account_id = api.home.state, api.home.account_id
    (default,) = await api.ok("GET", POLICIES)
    await api.ok("DELETE", f"{POLICIES}/{default['id']}")
    one, _ = await create_stock_peer(state, account_id, name="one", user_id=None)
    two, _ = await create_stock_peer(state, account_id, name="two", user_id=None)
    group = await api.ok("POST", "/api/groups", {"name": "g", "peers": [one.id]})
    maps = NetworkMaps(context_for(api.home).hooks)

    def ports() -> list[str]:
        """The ports that the map opens, which are the same for both families of addresses."""
        rules = maps.of(api.home.snapshot, one).FirewallRules
        ipv4, ipv6 = ([found.Port for found in rules if (":" in found.PeerIP) is v6] for v6 in (False, True))
        assert ipv4 == ipv6
        return ipv4

    given = {
        "name": "ssh",
        "enabled": True,
        "rules": [
            rule(sources=[group["id"]], destinationResource={"id": two.id, "type": "peer"}, ports=["22", "2222"])
        ],
    }
    made = await api.ok("POST", POLICIES, given)
    assert ports() == ["22", "2222"]
    (shown,) = made["rules"]
    assert (shown["ports"], shown["destinationResource"]) == (["22", "2222"], {"id": two.id, "type": "peer"})
    assert [source["name"] for source in shown["sources"]] == ["g"]
    given["rules"][0] |= {"id": shown["id"], "ports": None, "port_ranges": [{"start": 80, "end": 81}]}
    changed = await api.ok("PUT", f"{POLICIES}/{made['id']}", given)
    assert (changed["rules"][0]["id"], changed["rules"][0]["port_ranges"]) == (shown["id"], [{"start": 80, "end": 81}])
    assert await api.ok("GET", f"{POLICIES}/{made['id']}") == changed
    assert await api.ok("DELETE", f"{POLICIES}/{made['id']}") == {}
    assert ports() == []
    assert (await api.refused("PUT", f"{POLICIES}/{made['id']}", given))[0] == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"rules": []},
        {"rules": [rule()]},
        {"rules": [rule(sources=["ALL"])]},
        {"rules": [rule(sources=["ALL"], sourceResource={"id": "x", "type": "peer"}, destinations=["ALL"])]},
        {"rules": [rule(sources=["ALL"], destinations=["nope"])]},
        {"rules": [rule(sources=["ALL"], destinationResource={"id": "nope", "type": "peer"})]},
        {"rules": [rule(sources=["ALL"], destinationResource={"id": "x", "type": "planet"})]},
        {"rules": [rule(sources=["ALL"], destinations=["ALL"], action="maybe")]},
        {"rules": [rule(sources=["ALL"], destinations=["ALL"], protocol="sctp")]},
        {"rules": [rule(sources=["ALL"], destinations=["ALL"], ports=["0"])]},
        {"rules": [rule(sources=["ALL"], destinations=["ALL"], ports=["x"])]},
        {"rules": [rule(sources=["ALL"], destinations=["ALL"], port_ranges=[{"start": 2, "end": 1}])]},
        {"rules": [rule(sources=["ALL"], destinations=["ALL"], ports=["1"], port_ranges=[{"start": 1, "end": 2}])]},
        {"rules": [rule(sources=["ALL"], destinations=["ALL"], protocol="all", ports=["1"])]},
        {"source_posture_checks": ["x"]},
    ],
)
async def test_what_a_policy_cannot_say(api: Api, fields: dict[str, Any]) -> None:
    """Each rule by itself is 422 and changes nothing."""
    group_all = api.home.snapshot.group_all.id
    given = {"name": "p", "enabled": True, "rules": [rule(sources=["ALL"], destinations=["ALL"])], **fields}
    for one in given["rules"]:
        for side in ("sources", "destinations"):
            if side in one:
                one[side] = [group_all if id_ == "ALL" else id_ for id_ in one[side]]
    assert (await api.refused("POST", POLICIES, given))[0] == 422
    assert len(api.home.snapshot.policies) == 1


async def test_a_group_of_a_policy_stays(api: Api) -> None:
    """It cannot be deleted, and the refusal names the policy."""
    group = await api.ok("POST", "/api/groups", {"name": "g"})
    one = rule(sources=[group["id"]], destinations=[group["id"]])
    await api.ok("POST", POLICIES, {"name": "mine", "enabled": True, "rules": [one]})
    assert "policy: mine" in (await api.refused("DELETE", f"/api/groups/{group['id']}"))[1]
