"""Peers, and the configuration files of peers that run stock WireGuard. The peers of proxies are not listed."""

from typing import Annotated, Any, Final

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from netbird_management.compute.wireguard import wireguard_config
from netbird_management.model.accounts import Peer
from netbird_management.model.admission import has_expired_login
from netbird_management.model.errors import InvalidArgument, NotFound, PermissionDenied
from netbird_management.model.ids import GroupId, PeerId, UserId
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.peers import create_stock_peer, delete_peer, update_peer
from netbird_management.rest import shapes
from netbird_management.rest.auth import AnyUser, AuthenticatedUser
from netbird_management.rest.bodies import Body, Only
from netbird_management.rest.context import InContext
from netbird_management.rest.groups import group_minimum
from netbird_management.rest.permissions import Operation
from netbird_management.rest.wire import ApiResponse, moment, sent_as

router = APIRouter(tags=["peers"])

FLAGS = (
    "block_inbound",
    "block_lan_access",
    "disable_client_routes",
    "disable_dns",
    "disable_firewall",
    "disable_server_routes",
    "lazy_connection_enabled",
    "rosenpass_enabled",
    "rosenpass_permissive",
    "server_ssh_allowed",
)
"""Settings of an agent, of which its reports name those that are on."""


class PeerBody(Body):
    answer = shapes.NewPeer
    name: str = ""
    user_id: str | None = None
    group_ids: list[str] | None = None
    public_key: str | None = None


class PeerUpdate(Body):
    """All fields that NetBird's clients send back. Only the name and the expiry of the login can change."""

    answer = shapes.Peer
    name: str = ""
    ssh_enabled: Annotated[bool, Only(False)] = False
    login_expiration_enabled: bool | None = None
    inactivity_expiration_enabled: Annotated[bool, Only(False)] = False
    approval_required: Annotated[bool, Only(False)] = False
    ip: str = ""
    ipv6: str = ""


def peer_json(peer: Peer, account: AccountSnapshot) -> dict[str, Any]:
    return {
        "approval_required": False,
        "city_name": "",
        "connected": peer.connected,
        "connection_ip": peer.connection_ip,
        "country_code": "",
        "created_at": moment(peer.created_at),
        "dns_label": f"{peer.dns_label}.{account.account.dns_domain}",
        "ephemeral": peer.ephemeral,
        "extra_dns_labels": list(peer.extra_dns_labels),
        "geoname_id": 0,
        "groups": [group_minimum(group, account) for group in account.groups_of(peer.id)],
        "hostname": peer.meta.hostname,
        "id": peer.id,
        "inactivity_expiration_enabled": False,
        "ip": str(peer.ip),
        "ipv6": "" if peer.ipv6 is None else str(peer.ipv6),
        "kernel_version": peer.meta.kernel_version,
        "last_login": moment(peer.last_login),
        "last_seen": moment(peer.last_seen),
        "local_flags": {flag: flag in peer.meta.flags for flag in FLAGS},
        "login_expiration_enabled": peer.login_expiration_enabled,
        "login_expired": has_expired_login(peer, account.account),
        "name": peer.name,
        "os": peer.meta.os,
        "serial_number": peer.meta.serial_number,
        "ssh_enabled": False,
        "ui_version": peer.meta.ui_version,
        "user_id": peer.user_id or "",
        "version": peer.meta.netbird_version,
    }


def _minimum(peer: Peer, account: AccountSnapshot) -> dict[str, Any]:
    shown = peer_json(peer, account)
    return {name: shown[name] for name in shapes.AccessiblePeer.model_fields}


@router.get("/peers", response_model=list[shapes.ListedPeer])
async def list_peers(caller: AnyUser, name: str | None = None, ip: str | None = None) -> Response:
    peers = [
        peer
        for peer in sorted(caller.account.peers.values(), key=lambda peer: peer.id)
        if _may(peer, caller, "read")
        and (name is None or peer.name == name)
        and (ip is None or ip in (str(peer.ip), str(peer.ipv6)))
    ]
    return ApiResponse([{**peer_json(peer, caller.account), "accessible_peers_count": 0} for peer in peers])


@router.post("/peers", response_model=shapes.NewPeer)
async def post_peer(caller: AnyUser, context: InContext, body: Annotated[PeerBody, sent_as(PeerBody)]) -> Response:
    user_id = None if not body.user_id else UserId(body.user_id)
    if not caller.may("peers", "create"):
        # Policies give access to groups, so only an administrator may choose a peer's groups.
        if user_id not in (None, caller.user.id) or body.group_ids:
            raise PermissionDenied("you may add peers only for yourself and without groups")
        user_id = caller.user.id
    peer, private_key = await create_stock_peer(
        context.state,
        caller.account_id,
        name=body.name,
        user_id=user_id,
        group_ids=[GroupId(id_) for id_ in body.group_ids or ()],
        public_key=body.public_key or None,
    )
    answer = peer_json(peer, context.account_of(caller))
    return ApiResponse(answer if private_key is None else {**answer, "private_key": private_key})


@router.get("/peers/{peer_id}", response_model=shapes.Peer)
async def get_peer(peer_id: str, caller: AnyUser) -> Response:
    return ApiResponse(peer_json(_peer(peer_id, caller), caller.account))


@router.get("/peers/{peer_id}/accessible-peers", response_model=list[shapes.AccessiblePeer])
async def list_accessible(peer_id: str, caller: AnyUser, context: InContext) -> Response:
    """The peers in the peer's current network map, without the peers of proxies."""
    remote_peers = context.maps.of(caller.account, _peer(peer_id, caller)).remotePeers
    peers = [peer for remote in remote_peers if (peer := caller.account.peer_by_key(remote.wgPubKey)) is not None]
    return ApiResponse([_minimum(peer, caller.account) for peer in peers if peer.proxy is None])


_CONFIGURATION: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
}


@router.get("/peers/{peer_id}/wireguard", response_class=Response, responses=_CONFIGURATION)
async def get_wireguard(peer_id: str, caller: AnyUser) -> Response:
    config = wireguard_config(_peer(peer_id, caller), caller.account)
    return PlainTextResponse(config, headers={"cache-control": "no-store"})


@router.put("/peers/{peer_id}", response_model=shapes.Peer)
async def put_peer(
    peer_id: str, caller: AnyUser, context: InContext, body: Annotated[PeerUpdate, sent_as(PeerUpdate)]
) -> Response:
    peer = _peer(peer_id, caller, "update")
    for name, current in (("ip", str(peer.ip)), ("ipv6", "" if peer.ipv6 is None else str(peer.ipv6))):
        if getattr(body, name) not in ("", current):
            raise InvalidArgument(f"{name} of a peer cannot be changed: it is {current or 'not assigned'}")
    updated = await update_peer(
        context.state,
        caller.account_id,
        peer.id,
        name=body.name,
        login_expiration_enabled=_login_expiration(body, caller, peer),
    )
    return ApiResponse(peer_json(updated, context.account_of(caller)))


@router.delete("/peers/{peer_id}", response_model=shapes.Nothing)
async def remove_peer(peer_id: str, caller: AnyUser, context: InContext) -> Response:
    await delete_peer(context.state, caller.account_id, _peer(peer_id, caller, "delete").id)
    return ApiResponse({})


def _login_expiration(body: PeerUpdate, caller: AuthenticatedUser, peer: Peer) -> bool | None:
    """The requested value. Raises `PermissionDenied` if a user would keep their own login from expiring."""
    changed = body.login_expiration_enabled not in (None, peer.login_expiration_enabled)
    if changed and not caller.may("peers", "update"):
        raise PermissionDenied("only an administrator may decide whether a peer's login expires")
    return body.login_expiration_enabled


def _may(peer: Peer, caller: AuthenticatedUser, operation: Operation) -> bool:
    return peer.proxy is None and (caller.may("peers", operation) or peer.user_id == caller.user.id)


def _peer(peer_id: str, caller: AuthenticatedUser, operation: Operation = "read") -> Peer:
    """The peer, if the caller may do the operation.

    Raises `NotFound` also for an operation that the caller may not do, so that the error does not reveal which peers
    exist, and `InvalidArgument` for the peer of a proxy.
    """
    peer = caller.account.peers.get(PeerId(peer_id))
    if peer is not None and peer.proxy is not None and caller.may("peers", "read"):
        raise InvalidArgument(f"peer {peer_id} belongs to a proxy")
    if peer is None or not _may(peer, caller, operation):
        raise NotFound(f"peer: {peer_id} not found")
    return peer
