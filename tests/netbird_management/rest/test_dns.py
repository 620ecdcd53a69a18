"""What peers' resolvers are told besides the names of peers and services."""

from typing import Any

import pytest

from netbird_management.compute.network_map import NetworkMaps
from netbird_management.operations.peers import create_stock_peer
from netbird_wire.management_pb2 import DNSConfig
from tests.netbird_management.conftest import Api, context_for

SERVERS, ZONES = "/api/dns/nameservers", "/api/dns/zones"


async def _world(api: Api) -> tuple[str, Any, Any]:
    """A group, its member, and somebody else; each told by a function."""
    state, account_id = api.home.state, api.home.account_id
    member, _ = await create_stock_peer(state, account_id, name="member", user_id=None)
    other, _ = await create_stock_peer(state, account_id, name="other", user_id=None)
    group = await api.ok("POST", "/api/groups", {"name": "g", "peers": [member.id]})
    maps = NetworkMaps(context_for(api.home).hooks)

    def told(peer: Any) -> Any:
        return lambda: maps.of(api.home.snapshot, api.home.snapshot.peers[peer.id]).DNSConfig

    return group["id"], told(member), told(other)


def _zones(config: DNSConfig) -> list[str]:
    return [zone.Domain for zone in config.CustomZones]


async def test_name_servers_are_for_the_members(api: Api) -> None:
    """A group's servers reach its members alone, while they are enabled."""
    group, member, other = await _world(api)
    given = {
        "name": "corp",
        "description": "",
        "nameservers": [{"ip": "10.0.0.53", "ns_type": "udp", "port": 53}],
        "enabled": True,
        "groups": [group],
        "primary": False,
        "domains": ["Corp.Test."],
        "search_domains_enabled": True,
    }
    made = await api.ok("POST", SERVERS, given)
    (found,) = member().NameServerGroups
    assert (found.NameServers[0].IP, found.NameServers[0].Port, found.NameServers[0].NSType) == ("10.0.0.53", 53, 1)
    assert (list(found.Domains), found.SearchDomainsEnabled, found.Primary) == (["corp.test"], True, False)
    assert not other().NameServerGroups
    assert (await api.ok("GET", f"{SERVERS}/{made['id']}"))["domains"] == ["corp.test"]
    await api.ok("PUT", f"{SERVERS}/{made['id']}", {**given, "enabled": False})
    assert not member().NameServerGroups
    assert "name server groups: corp" in (await api.refused("DELETE", f"/api/groups/{group}"))[1]
    await api.ok("DELETE", f"{SERVERS}/{made['id']}")
    assert await api.ok("GET", SERVERS) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "x" * 41},
        {"nameservers": []},
        {"nameservers": [{"ip": f"10.0.0.{i}", "port": 53} for i in range(4)]},
        {"nameservers": [{"ip": "x", "port": 53}]},
        {"nameservers": [{"ip": "10.0.0.1", "port": 0}]},
        {"nameservers": [{"ip": "10.0.0.1", "port": 53, "ns_type": "tcp"}]},
        {"domains": []},
        {"domains": ["*.x.test"]},
        {"primary": True},
        {"primary": True, "domains": [], "search_domains_enabled": True},
        {"groups": []},
        {"groups": ["nope"]},
    ],
)
async def test_what_name_servers_cannot_be(api: Api, fields: dict[str, Any]) -> None:
    """Each rule by itself."""
    given = {
        "name": "n",
        "nameservers": [{"ip": "10.0.0.1", "ns_type": "udp", "port": 53}],
        "enabled": True,
        "groups": [api.home.snapshot.group_all.id],
        "domains": ["x.test"],
        **fields,
    }
    assert (await api.refused("POST", SERVERS, given))[0] == 422


async def test_a_zone_is_for_the_members(api: Api) -> None:
    """With records it reaches its members: A, AAAA and an alias; without, disabled or for others it does not."""
    group, member, other = await _world(api)
    given = {"name": "z", "domain": "Lab.Test", "enable_search_domain": True, "distribution_groups": [group]}
    made = await api.ok("POST", ZONES, given)
    assert (made["domain"], made["enabled"], made["records"]) == ("lab.test", True, [])
    assert "lab.test." not in _zones(member())
    records = f"{ZONES}/{made['id']}/records"
    await api.ok("POST", records, {"name": "a.lab.test", "type": "A", "content": "10.0.0.1", "ttl": 60})
    await api.ok("POST", records, {"name": "a.lab.test", "type": "AAAA", "content": "FD00::1", "ttl": 60})
    alias = await api.ok("POST", records, {"name": "b.lab.test", "type": "CNAME", "content": "a.lab.test", "ttl": 5})
    (zone,) = (zone for zone in member().CustomZones if zone.Domain == "lab.test.")
    assert [(one.Name, one.Type, one.RData, one.TTL) for one in zone.Records] == [
        ("a.lab.test.", 1, "10.0.0.1", 60),
        ("a.lab.test.", 28, "fd00::1", 60),
        ("b.lab.test.", 5, "a.lab.test.", 5),
    ]
    assert (zone.SearchDomainDisabled, zone.NonAuthoritative) == (False, True)
    assert "lab.test." not in _zones(other())
    changed = await api.ok("PUT", f"{records}/{alias['id']}", {**alias, "content": "c.lab.test"})
    assert await api.ok("GET", f"{records}/{alias['id']}") == changed
    assert await api.ok("DELETE", f"{records}/{alias['id']}") == {}
    assert len(await api.ok("GET", records)) == 2
    await api.ok("PUT", f"{ZONES}/{made['id']}", {**given, "enabled": False})
    assert "lab.test." not in _zones(member())
    await api.ok("DELETE", f"{ZONES}/{made['id']}")
    assert (await api.refused("GET", f"{ZONES}/{made['id']}"))[0] == 404


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"name": "a.other.test"}, 422),
        ({"type": "MX"}, 422),
        ({"content": "fd00::1"}, 422),
        ({"ttl": -1}, 422),
        ({}, 409),
        ({"type": "CNAME", "content": "b.lab.test"}, 409),
    ],
)
async def test_what_a_record_cannot_be(api: Api, given: dict[str, Any], status: int) -> None:
    """Each rule by itself; the same record twice is a conflict."""
    zone = {"name": "z", "domain": "lab.test", "distribution_groups": [api.home.snapshot.group_all.id]}
    made = await api.ok("POST", ZONES, zone)
    record = {"name": "a.lab.test", "type": "A", "content": "10.0.0.1", "ttl": 60}
    await api.ok("POST", f"{ZONES}/{made['id']}/records", record)
    assert (await api.refused("POST", f"{ZONES}/{made['id']}/records", {**record, **given}))[0] == status


async def test_zones_do_not_collide(api: Api) -> None:
    """A domain has one zone, which keeps its domain; the peers' own is not to be had."""
    zone = {"name": "z", "domain": "lab.test", "distribution_groups": [api.home.snapshot.group_all.id]}
    made = await api.ok("POST", ZONES, zone)
    assert (await api.refused("POST", ZONES, zone))[0] == 409
    assert (await api.refused("POST", ZONES, {**zone, "domain": "netbird.selfhosted"}))[0] == 422
    assert (await api.refused("POST", ZONES, {**zone, "domain": "b.test", "distribution_groups": []}))[0] == 422
    assert (await api.refused("PUT", f"{ZONES}/{made['id']}", {**zone, "domain": "b.test"}))[0] == 422


async def test_some_are_left_alone(api: Api) -> None:
    """A peer in a disabled group is told nothing about names; everybody else still is."""
    group, member, other = await _world(api)
    await api.ok("PUT", "/api/dns/settings", {"disabled_management_groups": [group]})
    assert await api.ok("GET", "/api/dns/settings") == {"disabled_management_groups": [group]}
    assert (member().ServiceEnable, _zones(member())) == (False, [])
    assert other().ServiceEnable
    assert (await api.refused("PUT", "/api/dns/settings", {"disabled_management_groups": ["x"]}))[0] == 422
    assert (await api.refused("PUT", "/api/dns/settings", {}))[0] == 400
    account = (await api.ok("GET", "/api/accounts"))[0]
    await api.ok("PUT", f"/api/accounts/{account['id']}", {"settings": account["settings"]})
    assert not member().ServiceEnable
