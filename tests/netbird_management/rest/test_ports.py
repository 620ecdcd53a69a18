"""Services that are no HTTP: what they may say, and which port they get."""

from typing import Any

import pytest

from netbird_management.model.ids import ProxyId
from netbird_management.model.services import Capabilities
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.ports import PORT_MAX, PORT_MIN
from netbird_management.operations.proxies import Registration, register_proxy
from tests.netbird_management.conftest import Api

SERVICES = "/api/reverse-proxies/services"


@pytest.fixture
async def peer_id(api: Api, proxy: Registration) -> str:
    peer, _ = await create_stock_peer(api.home.state, api.home.account_id, name="bob", user_id=None)
    return peer.id


def service(peer_id: str, name: str = "db", mode: str = "tcp", **fields: Any) -> dict[str, Any]:
    protocol = "udp" if mode == "udp" else "tcp"
    target = {"target_id": peer_id, "target_type": "peer", "protocol": protocol, "port": 5432, "enabled": True}
    return {"name": name, "domain": f"{name}.px.test", "enabled": True, "mode": mode, "targets": [target], **fields}


@pytest.mark.parametrize("mode", ["tcp", "udp"])
async def test_a_port_is_picked_kept_and_told(api: Api, peer_id: str, mode: str) -> None:
    """Without a port the service gets one of the range; an update without one keeps it, one with another moves it."""
    made = await api.ok("POST", SERVICES, service(peer_id, mode=mode))
    assert PORT_MIN <= made["listen_port"] <= PORT_MAX
    assert made["port_auto_assigned"] is True
    kept = await api.ok("PUT", f"{SERVICES}/{made['id']}", service(peer_id, mode=mode))
    assert (kept["listen_port"], kept["port_auto_assigned"]) == (made["listen_port"], True)
    moved = await api.ok("PUT", f"{SERVICES}/{made['id']}", service(peer_id, mode=mode, listen_port=15432))
    assert (moved["listen_port"], moved["port_auto_assigned"]) == (15432, False)


async def test_one_port_is_one_services(api: Api, peer_id: str) -> None:
    """The same mode and port twice is refused, another mode is not; TLS services share a port by their names. Moving
    to a port that is taken is refused as well, and one that is picked is free in every mode."""
    await api.ok("POST", SERVICES, service(peer_id, listen_port=15432))
    assert (await api.refused("POST", SERVICES, service(peer_id, "db2", listen_port=15432)))[0] == 409
    await api.ok("POST", SERVICES, service(peer_id, "db3", "udp", listen_port=15432))
    await api.ok("POST", SERVICES, service(peer_id, "db4", "tls", listen_port=15432))
    await api.ok("POST", SERVICES, service(peer_id, "db5", "tls", listen_port=15432))
    assert (await api.refused("POST", SERVICES, service(peer_id, "db6", "udp", listen_port=15432)))[0] == 409
    picked = await api.ok("POST", SERVICES, service(peer_id, "db7", "udp"))
    assert picked["listen_port"] != 15432
    taken = service(peer_id, "db7", "udp", listen_port=15432)
    assert (await api.refused("PUT", f"{SERVICES}/{picked['id']}", taken))[0] == 409


async def test_a_cluster_without_custom_ports_picks_itself(api: Api, peer_id: str) -> None:
    """A port by number needs proxies that can; TLS by name needs none, and a stored port outlives the ability."""
    made = await api.ok("POST", SERVICES, service(peer_id, listen_port=15432))
    plain = Registration(ProxyId("proxy-1"), "s2", "px.test", "", None, None, Capabilities(False, False, False))
    await register_proxy(api.home.state, plain)
    assert (await api.refused("POST", SERVICES, service(peer_id, "db2", listen_port=15433)))[0] == 422
    await api.ok("POST", SERVICES, service(peer_id, "db3"))
    named = await api.ok("POST", SERVICES, service(peer_id, "db4", "tls", listen_port=8443))
    await api.ok("PUT", f"{SERVICES}/{named['id']}", service(peer_id, "db4", "tls", listen_port=8444))
    await api.ok("PUT", f"{SERVICES}/{made['id']}", service(peer_id, listen_port=15432))
    changed = service(peer_id, listen_port=15999)
    assert (await api.refused("PUT", f"{SERVICES}/{made['id']}", changed))[0] == 422


@pytest.mark.parametrize(
    ("mode", "fields", "target"),
    [
        ("tls", {}, {}),
        ("tcp", {"auth": {"pin_auth": {"enabled": True, "pin": "1234"}}}, {}),
        ("tcp", {"listen_port": 70000}, {}),
        ("tcp", {}, {"port": 0}),
        ("tcp", {}, {"path": "/x"}),
        ("tcp", {}, {"target_id": ""}),
        ("tcp", {}, {"target_type": "cluster", "target_id": "px.test"}),
        ("tcp", {}, {"options": {"path_rewrite": "preserve"}}),
        ("tcp", {}, {"options": {"custom_headers": {"X-A": "b"}}}),
        ("tcp", {}, {"options": {"skip_tls_verify": True}}),
        ("tcp", {}, {"options": {"session_idle_timeout": "-1s"}}),
        ("udp", {}, {"options": {"proxy_protocol": True}}),
        ("ftp", {}, {}),
    ],
)
async def test_what_a_stream_cannot_be_is_refused(
    api: Api, peer_id: str, mode: str, fields: dict[str, Any], target: dict[str, Any]
) -> None:
    """Each rule by itself."""
    given = service(peer_id, mode=mode, **fields)
    given["targets"][0] |= target
    assert (await api.refused("POST", SERVICES, given))[0] == 422


async def test_a_stream_has_one_target(api: Api, peer_id: str) -> None:
    """Two targets are refused, and so is an only one that is off; where nothing is sent, it is on."""
    given = service(peer_id)
    two = {**given, "targets": given["targets"] * 2}
    assert (await api.refused("POST", SERVICES, two))[0] == 422
    off = {**given, "targets": [{**given["targets"][0], "enabled": False}]}
    assert (await api.refused("POST", SERVICES, off))[0] == 422
    given["targets"][0].pop("enabled", None)
    assert (await api.ok("POST", SERVICES, given))["targets"][0]["enabled"] is True


async def test_the_mode_stays(api: Api, peer_id: str) -> None:
    """An update may leave the mode out, and name no other."""
    made = await api.ok("POST", SERVICES, service(peer_id))
    other = service(peer_id, mode="udp")
    assert (await api.refused("PUT", f"{SERVICES}/{made['id']}", other))[0] == 422
    without = service(peer_id)
    del without["mode"]
    assert (await api.ok("PUT", f"{SERVICES}/{made['id']}", without))["mode"] == "tcp"
