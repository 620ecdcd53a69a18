"""The main story, as a proxy and a member see it over the wire."""

from ipaddress import ip_network
from typing import Any

from netbird_management.model.accounts import Peer
from netbird_management.operations.statuses import proxy_statuses
from netbird_wire.management_pb2 import IN, TCP, SyncResponse
from netbird_wire.proxy_service_pb2 import (
    PROXY_STATUS_ACTIVE,
    ProxyInboundListener,
    SendStatusUpdateRequest,
    ValidateTunnelPeerRequest,
)
from tests.netbird_management.grpc.conftest import FakeProxy, Lab, register


async def test_a_private_service_from_its_making_to_a_member(lab: Lab) -> None:
    """Mapping → peer → login → map → validation → status; a change of members changes map and answer at once."""
    alice = await lab.user("alice@lab.test")
    phone, laptop = await lab.stock_peer("phone", alice), await lab.stock_peer("laptop")
    group = await lab.group("engineering", phone)
    service = await lab.service("app", group)

    proxy = lab.proxy()
    [snapshot] = await proxy.connect()
    assert "wireguard_endpoint" in snapshot.management_extensions
    mapping = proxy.mappings[service.id]
    assert (mapping.private, mapping.domain, mapping.account_id) == (True, "app.px.test", lab.home.account_id)

    node = lab.peer()
    assert (await register(proxy, service, peer=node, endpoint="127.0.0.1:51820")).success
    login = await node.login()
    assert login.peerConfig.address.endswith("/16")
    first = await node.sync()
    assert _members(first) == _addresses(phone)
    assert _doors(first) == {(address, port) for address in _addresses(phone) for port in (80, 443)}

    answer = await _validate(lab, proxy, str(phone.ip))
    assert (answer.valid, answer.user_id, answer.user_email) == (True, alice.id, "alice@lab.test")
    assert list(answer.peer_group_names) == ["All", "engineering"]
    assert answer.session_token
    assert (answer.principal.user_id, answer.principal.peer_name) == (alice.id, "phone")
    denied = await _validate(lab, proxy, str(laptop.ip))
    assert (denied.valid, denied.denied_reason, denied.session_token) == (False, "not_in_group", "")
    assert list(denied.required_group_names) == ["engineering"]

    await lab.set_members(group, laptop)
    assert _members(await node.until(lambda message: _members(message) != _addresses(phone))) == _addresses(laptop)
    assert (await _validate(lab, proxy, str(laptop.ip))).valid
    assert not (await _validate(lab, proxy, str(phone.ip))).valid

    status = SendStatusUpdateRequest(
        service_id=service.id,
        account_id=service.account_id,
        status=PROXY_STATUS_ACTIVE,
        inbound_listener=ProxyInboundListener(tunnel_ip="100.64.0.1", http_port=80),
    )
    await proxy.unary("SendStatusUpdate", status)
    [stored] = await proxy_statuses(lab.home.state, service.id)
    assert (stored.proxy_id, stored.status, stored.withheld) == ("proxy-1", "active", "")
    assert stored.inbound_listener is not None
    assert (stored.inbound_listener.http_port, stored.inbound_listener.https_port) == (80, 0)


async def _validate(lab: Lab, proxy: FakeProxy, ip: str, domain: str = "APP.px.test.") -> Any:
    return await proxy.unary("ValidateTunnelPeer", ValidateTunnelPeerRequest(tunnel_ip=ip, domain=domain))


def _addresses(peer: Peer) -> set[str]:
    assert peer.ipv6 is not None
    return {str(peer.ip), str(peer.ipv6)}


def _members(message: SyncResponse) -> set[str]:
    allowed = [ip_network(address) for peer in message.NetworkMap.remotePeers for address in peer.allowedIps]
    assert all(network.num_addresses == 1 for network in allowed)
    return {str(network.network_address) for network in allowed}


def _doors(message: SyncResponse) -> set[tuple[str, int]]:
    rules = message.NetworkMap.FirewallRules
    assert all(rule.Direction == IN and rule.Protocol == TCP for rule in rules)
    return {(rule.PeerIP, rule.PortInfo.range.start) for rule in rules}
