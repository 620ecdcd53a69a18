"""Networks through the API, and services whose targets are behind them."""

from dataclasses import replace
from typing import Any

import pytest

from netbird_management.compute.mapping import ROUTES, build
from netbird_management.model.ids import ServiceId
from netbird_management.model.services import Capabilities, TargetOptions
from netbird_management.operations.groups import create_group
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.proxies import Registration
from netbird_management.plugins.hooks import load_hooks
from netbird_management.store.state import State
from tests.netbird_management.conftest import Api
from tests.netbird_management.grpc.conftest import Lab
from tests.netbird_management.grpc.conftest import lab as lab
from tests.netbird_management.rest.test_services import SERVICES, body, target

NETWORKS = "/api/networks"


def resource(**change: Any) -> dict[str, Any]:
    return {"name": "database", "address": "10.0.0.5", "enabled": True, "groups": [], **change}


async def _network(api: Api) -> str:
    made = await api.ok("POST", NETWORKS, {"name": "office", "description": "downstairs"})
    return f"{NETWORKS}/{made['id']}"


async def test_a_network_lives_and_dies(api: Api) -> None:
    """Made, renamed, with resources and routers that its page names, and gone with all of them."""
    home = api.home
    peer, _ = await create_stock_peer(home.state, home.account_id, name="carrier", user_id=None)
    group = await create_group(home.state, home.account_id, name="carriers", peers=[peer.id])
    path = await _network(api)
    made = await api.ok("POST", f"{path}/resources", resource(groups=[group.id]))
    router = await api.ok(
        "POST", f"{path}/routers", {"metric": 9999, "masquerade": True, "enabled": True, "peer_groups": [group.id]}
    )
    rule = {
        "name": "r",
        "enabled": True,
        "action": "accept",
        "bidirectional": False,
        "protocol": "all",
        "sources": [group.id],
        "destinationResource": {"id": made["id"], "type": "host"},
    }
    policy = await api.ok("POST", "/api/policies", {"name": "p", "enabled": True, "rules": [rule]})
    assert made == {
        "address": "10.0.0.5/32",
        "description": "",
        "enabled": True,
        "groups": [{"id": group.id, "name": "carriers", "peers_count": 1, "resources_count": 1}],
        "id": made["id"],
        "name": "database",
        "type": "host",
    }
    shown = await api.ok("PUT", path, {"name": "cellar"})
    assert shown == {
        "description": "",
        "id": path.rpartition("/")[2],
        "name": "cellar",
        "policies": [policy["id"]],
        "resources": [made["id"]],
        "routers": [router["id"]],
        "routing_peers_count": 1,
    }
    assert await api.ok("GET", NETWORKS) == [shown]
    assert await api.ok("GET", f"{path}/resources") == [made]
    assert await api.ok("GET", f"{path}/routers/{router['id']}") == router
    held = (await api.ok("GET", f"/api/groups/{group.id}"))["resources"]
    assert held == [{"id": made["id"], "type": "host"}]
    assert (await api.refused("DELETE", f"/api/groups/{group.id}"))[1] == "group has been linked to policy: p"
    assert (await api.refused("DELETE", path))[0] == 412
    await api.ok("DELETE", f"/api/policies/{policy['id']}")
    assert "network resource: database" in (await api.refused("DELETE", f"/api/groups/{group.id}"))[1]
    await api.ok("DELETE", path)
    assert await api.ok("GET", NETWORKS) == []
    codes = [event["activity_code"] for event in await api.ok("GET", "/api/events")]
    assert {"network.create", "network.update", "network.resource.create", "network.router.create"} <= {*codes}
    assert codes[0] == "network.delete"


@pytest.mark.parametrize(
    ("address", "kind", "kept"),
    [
        ("10.0.0.5", "host", "10.0.0.5/32"),
        ("10.0.0.5/32", "host", "10.0.0.5/32"),
        ("fd00::5", "host", "fd00::5/128"),
        ("10.0.0.0/16", "subnet", "10.0.0.0/16"),
        ("Wiki.Internal.", "domain", "wiki.internal"),
        ("*.internal", "domain", "*.internal"),
    ],
)
async def test_an_address_says_what_a_resource_is(api: Api, address: str, kind: str, kept: str) -> None:
    """One address, a network, or the names of a domain; kept in one spelling."""
    made = await api.ok("POST", f"{await _network(api)}/resources", resource(address=address))
    assert (made["type"], made["address"]) == (kind, kept)


async def test_what_breaks_a_rule_is_not_stored(api: Api) -> None:
    """422 with a sentence, 409 for a name that is taken, 404 for what is not there."""
    path = await _network(api)
    for change in (
        {"address": "10.0.0.5/16"},
        {"address": ""},
        {"address": "not a name"},
        {"name": ""},
        {"groups": ["nothing"]},
    ):
        assert (await api.refused("POST", f"{path}/resources", resource(**change)))[0] == 422, change
    assert (await api.refused("POST", f"{path}/resources", {"name": "x", "address": "10.0.0.5"}))[0] == 400
    await api.ok("POST", f"{path}/resources", resource())
    assert (await api.refused("POST", f"{path}/resources", resource()))[0] == 409
    router = {"metric": 1, "masquerade": False, "enabled": True, "peer": "nobody"}
    for change in (
        {},
        {"peer": ""},
        {"peer_groups": ["x"]},
        {"peer": "", "peer_groups": ["x"]},
        {"metric": 0},
        {"metric": 10000},
    ):
        assert (await api.refused("POST", f"{path}/routers", {**router, **change}))[0] == 422, change
    assert (await api.refused("POST", NETWORKS, {"name": ""}))[0] == 422
    for method, where in (("GET", f"{NETWORKS}/x"), ("PUT", f"{path}/resources/x"), ("DELETE", f"{path}/routers/x")):
        assert (await api.refused(method, where, resource() if method == "PUT" else None))[0] == 404, where
    policy = {"name": "r", "enabled": True, "action": "accept", "bidirectional": False, "protocol": "all"}
    everybody = api.home.snapshot.group_all.id
    for sides in (
        {"sources": [everybody], "destinationResource": {"id": "x", "type": "host"}},
        {"sourceResource": {"id": "x", "type": "subnet"}, "destinations": [everybody]},
    ):
        refused = await api.refused("POST", "/api/policies", {"name": "p", "enabled": True, "rules": [policy | sides]})
        assert refused[0] == 422


async def _resource(api: Api, **change: Any) -> str:
    return str((await api.ok("POST", f"{await _network(api)}/resources", resource(**change)))["id"])


async def test_a_target_behind_a_network(api: Api, proxy: Registration) -> None:
    """A host's and a domain's own address are what proxies dial, a subnet's is the operator's."""
    host = await _resource(api)
    names = await _resource(api, name="wiki", address="wiki.internal")
    lan = await _resource(api, name="lan", address="10.1.0.0/16")
    plain = {"options": {"direct_upstream": False}}
    made = await api.ok(
        "POST",
        SERVICES,
        body(
            targets=[
                target(target_type="host", target_id=host, host="", path="/a", **plain),
                target(target_type="domain", target_id=names, host="elsewhere", path="/b", **plain),
                target(target_type="subnet", target_id=lan, host="10.1.0.7", path="/c", **plain),
            ]
        ),
    )
    assert [one["host"] for one in made["targets"]] == ["10.0.0.5", "wiki.internal", "10.1.0.7"]
    account = api.home.snapshot
    service = account.services[ServiceId(made["id"])]
    built = build(service, account, load_hooks(["private_service", "direct_upstream"]))
    assert [path.target for path in built.mapping.path] == [
        "http://10.0.0.5:9000/",
        "http://wiki.internal:9000/",
        "http://10.1.0.7:9000/",
    ]
    claims = frozenset({"path.options.direct_upstream"})
    assert built.withheld_from(Capabilities()) == ""
    assert "set direct_upstream" in built.withheld_from(Capabilities(claims=claims))
    assert built.withheld_from(Capabilities(claims=claims | {ROUTES})) == ""
    flagged = replace(service.targets[0], options=TargetOptions(direct_upstream=True))
    direct = build(replace(service, targets=(flagged,)), account, load_hooks(["direct_upstream"]))
    assert direct.withheld_from(Capabilities(claims=claims)) == ""
    gone = replace(service, targets=(replace(service.targets[0], target_id="gone"),))
    assert build(gone, account, load_hooks()).mapping.path[0].target == "http://unknown:9000/"


async def test_a_target_must_be_what_it_says(api: Api, proxy: Registration) -> None:
    """Unknown, of another type, many names at once, a subnet without a host or with one outside of it."""
    host = await _resource(api)
    many = await _resource(api, name="many", address="*.internal")
    lan = await _resource(api, name="lan", address="10.1.0.0/16")
    plain = {"options": {"direct_upstream": False}}
    for wrong in (
        target(target_type="host", target_id="nothing", **plain),
        target(target_type="subnet", target_id=host, **plain),
        target(target_type="domain", target_id=many, **plain),
        target(target_type="subnet", target_id=lan, host="", **plain),
        target(target_type="subnet", target_id=lan, host="10.2.0.1", **plain),
        target(target_type="subnet", target_id=lan, host="db:80", **plain),
        target(target_type="host", target_id=host, host="db:80"),
    ):
        assert (await api.refused("POST", SERVICES, body(targets=[wrong])))[0] == 422, wrong
    await api.ok("POST", SERVICES, body(targets=[target(target_type="host", target_id=host)]))
    one = {"target_id": lan, "target_type": "subnet", "protocol": "tcp", "port": 5432, "enabled": True}
    stream = {"name": "db", "domain": "db.px.test", "enabled": True, "mode": "tls", "listen_port": 5432}
    await api.ok("POST", SERVICES, {**stream, "targets": [{**one, "host": "10.1.0.7"}]})


@pytest.mark.parametrize("mode", ["tcp", "udp", "tls"])
async def test_streams_lead_behind_networks(api: Api, proxy: Registration, mode: str) -> None:
    """To a host, a domain and a place in a subnet, as `host:port`, by a route for their protocol."""
    protocol = "udp" if mode == "udp" else "tcp"
    for number, (kind, address, host, wanted) in enumerate(
        (
            ("host", "10.0.0.5", "", "10.0.0.5:5432"),
            ("domain", "db.internal", "", "db.internal:5432"),
            ("subnet", "fd01::/48", "fd01::7", "[fd01::7]:5432"),
        )
    ):
        id_ = await _resource(api, name=kind, address=address)
        one = {"target_id": id_, "target_type": kind, "protocol": protocol, "port": 5432, "enabled": True, "host": host}
        given = {"name": kind, "domain": f"{kind}.px.test", "enabled": True, "mode": mode, "targets": [one]}
        made = await api.ok("POST", SERVICES, {**given, "listen_port": 15000 + number})
        account = api.home.snapshot
        service = account.services[ServiceId(made["id"])]
        assert [path.target for path in build(service, account, load_hooks()).mapping.path] == [wanted]


async def test_what_a_service_needs_stays(api: Api, proxy: Registration) -> None:
    """A resource that is a target is neither deleted, nor becomes something else; the service goes first."""
    host = await _resource(api)
    network = f"{NETWORKS}/{api.home.snapshot.networks[0].id}"
    made = await api.ok("POST", SERVICES, body(targets=[target(target_type="host", target_id=host)]))
    path = f"{network}/resources/{host}"
    for method, where, sent in (
        ("DELETE", path, None),
        ("DELETE", network, None),
        ("PUT", path, resource(address="wiki.internal")),
    ):
        refused = await api.refused(method, where, sent)
        assert refused == (412, f"resource {host} is a target of service {made['id']}")
    await api.ok("PUT", path, resource(address="10.0.0.6"))
    await api.ok("DELETE", f"{SERVICES}/{made['id']}")
    await api.ok("DELETE", path)


async def test_a_group_is_left_alone_with_its_resources(api: Api) -> None:
    """A client that sends a group back as it read it changes nothing; resources change groups by themselves."""
    group = await create_group(api.home.state, api.home.account_id, name="lans")
    id_ = await _resource(api, groups=[group.id])
    shown = await api.ok("GET", f"/api/groups/{group.id}")
    path = f"/api/groups/{group.id}"
    await api.ok("PUT", path, {"name": "lans", "peers": [], "resources": shown["resources"]})
    assert (await api.refused("PUT", path, {"name": "lans", "resources": []}))[0] == 422
    assert [one["id"] for one in (await api.ok("GET", path))["resources"]] == [id_]


async def test_a_restart_reads_networks(api: Api, tmp_path: Any, database: str) -> None:
    """With resources and routers as they were."""
    peer, _ = await create_stock_peer(api.home.state, api.home.account_id, name="carrier", user_id=None)
    path = await _network(api)
    await api.ok("POST", f"{path}/resources", resource(address="10.1.0.0/16"))
    await api.ok("POST", f"{path}/routers", {"metric": 7, "masquerade": True, "enabled": True, "peer": peer.id})
    async with State.open(tmp_path, api.home.state.vault, database) as again:
        found = again.snapshots.get(api.home.account_id)
    assert found is not None
    assert found.networks == api.home.snapshot.networks


async def test_proxies_hear_where_a_resource_went(lab: Lab, api: Api) -> None:
    """A new address of a resource is a new mapping of the services that lead there, and of no other."""
    host = await _resource(api)
    proxy = lab.proxy()
    made = await api.ok("POST", SERVICES, body(targets=[target(target_type="host", target_id=host)]))
    await api.ok("POST", SERVICES, body(name="other", domain="other.px.test"))
    await proxy.connect()
    network = api.home.snapshot.networks[0].id
    await api.ok("PUT", f"{NETWORKS}/{network}/resources/{host}", resource(address="10.0.0.6"))
    (mapping,) = (await proxy.next()).mapping
    assert (mapping.id, mapping.path[0].target) == (made["id"], "http://10.0.0.6:9000/")
