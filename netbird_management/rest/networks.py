"""Networks behind routing peers, with their resources and routers."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from starlette.responses import Response

from netbird_management.model.accounts import NetworkResource, NetworkRouter, Policy, ResourceType, RoutedNetwork
from netbird_management.model.errors import BadRequest
from netbird_management.model.ids import GroupId, PeerId
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.networks import (
    delete_network,
    delete_resource,
    delete_router,
    get_network,
    get_resource,
    get_router,
    save_network,
    save_resource,
    save_router,
)
from netbird_management.rest import shapes
from netbird_management.rest.auth import AuthenticatedUser, allowed
from netbird_management.rest.bodies import DESCRIPTION, Body
from netbird_management.rest.context import InContext
from netbird_management.rest.groups import group_minimum
from netbird_management.rest.wire import ApiResponse, sent_as

router = APIRouter(prefix="/networks", tags=["networks"])


class NetworkBody(Body):
    answer = shapes.Network
    name: str = ""
    description: Annotated[str, DESCRIPTION] = ""


class NetworkResourceBody(Body):
    answer = shapes.NetworkResource
    name: str = ""
    description: Annotated[str, DESCRIPTION] = ""
    address: str = ""
    enabled: bool = False
    groups: list[str] | None = None


class NetworkRouterBody(Body):
    answer = shapes.NetworkRouter
    metric: int = 0
    masquerade: bool = False
    enabled: bool = False
    peer: str = ""
    peer_groups: list[str] | None = None


def network_json(network: RoutedNetwork, account: AccountSnapshot) -> dict[str, Any]:
    carriers = {
        id_
        for router in network.routers
        for id_ in (account.members(router.peer_groups) if router.peer is None else {router.peer})
        if id_ in account.peers
    }
    return {
        "description": network.description,
        "id": network.id,
        "name": network.name,
        "policies": [policy.id for policy in account.policies.values() if _reaches(policy, network.resources)],
        "resources": [resource.id for resource in network.resources],
        "routers": [router.id for router in network.routers],
        "routing_peers_count": len(carriers),
    }


def resource_json(resource: NetworkResource, account: AccountSnapshot) -> dict[str, Any]:
    groups = [account.groups[id_] for id_ in resource.groups if id_ in account.groups]
    return {
        "address": resource.address,
        "description": resource.description,
        "enabled": resource.enabled,
        "groups": [group_minimum(group, account) for group in groups],
        "id": resource.id,
        "name": resource.name,
        "type": str(resource.type),
    }


def router_json(carrier: NetworkRouter) -> dict[str, Any]:
    """A router names either a peer or groups of peers."""
    shown: dict[str, Any] = {
        "enabled": carrier.enabled,
        "id": carrier.id,
        "masquerade": carrier.masquerade,
        "metric": carrier.metric,
    }
    return shown | ({"peer_groups": list(carrier.peer_groups)} if carrier.peer is None else {"peer": carrier.peer})


def _reaches(policy: Policy, resources: Sequence[NetworkResource]) -> bool:
    ids = {resource.id for resource in resources}
    groups = {group for resource in resources for group in resource.groups}
    return any(
        (rule.destination_resource is not None and rule.destination_resource.id in ids)
        or groups.intersection(rule.destinations)
        for rule in policy.rules
    )


@router.get("", response_model=list[shapes.Network])
async def list_networks(caller: Annotated[AuthenticatedUser, allowed("networks", "read")]) -> Response:
    return ApiResponse([network_json(network, caller.account) for network in caller.account.networks])


@router.post("", response_model=shapes.Network)
async def post_network(
    caller: Annotated[AuthenticatedUser, allowed("networks", "create")],
    context: InContext,
    body: Annotated[NetworkBody, sent_as(NetworkBody)],
) -> Response:
    return await _save_network("", body, caller, context)


@router.get("/resources", response_model=list[shapes.NetworkResource])
async def list_all_resources(caller: Annotated[AuthenticatedUser, allowed("networks", "read")]) -> Response:
    """The resources of every network."""
    account = caller.account
    return ApiResponse([resource_json(each, account) for network in account.networks for each in network.resources])


@router.get("/routers", response_model=list[shapes.NetworkRouter])
async def list_all_routers(caller: Annotated[AuthenticatedUser, allowed("networks", "read")]) -> Response:
    """The routers of every network."""
    return ApiResponse([router_json(each) for network in caller.account.networks for each in network.routers])


@router.get("/{network_id}", response_model=shapes.Network)
async def get_one(
    network_id: str, caller: Annotated[AuthenticatedUser, allowed("networks", "read")], context: InContext
) -> Response:
    return ApiResponse(network_json(get_network(context.state, caller.account_id, network_id), caller.account))


@router.put("/{network_id}", response_model=shapes.Network)
async def put_network(
    network_id: str,
    caller: Annotated[AuthenticatedUser, allowed("networks", "update")],
    context: InContext,
    body: Annotated[NetworkBody, sent_as(NetworkBody)],
) -> Response:
    return await _save_network(network_id, body, caller, context)


@router.delete("/{network_id}", response_model=shapes.Nothing)
async def remove_network(
    network_id: str, caller: Annotated[AuthenticatedUser, allowed("networks", "delete")], context: InContext
) -> Response:
    await delete_network(context.state, caller.account_id, network_id)
    return ApiResponse({})


@router.get("/{network_id}/resources", response_model=list[shapes.NetworkResource])
async def list_resources(
    network_id: str, caller: Annotated[AuthenticatedUser, allowed("networks", "read")], context: InContext
) -> Response:
    network = get_network(context.state, caller.account_id, network_id)
    return ApiResponse([resource_json(resource, caller.account) for resource in network.resources])


@router.post("/{network_id}/resources", response_model=shapes.NetworkResource)
async def post_resource(
    network_id: str,
    caller: Annotated[AuthenticatedUser, allowed("networks", "create")],
    context: InContext,
    body: Annotated[NetworkResourceBody, sent_as(NetworkResourceBody)],
) -> Response:
    return await _save_resource(network_id, "", body, caller, context)


@router.get("/{network_id}/resources/{resource_id}", response_model=shapes.NetworkResource)
async def one_resource(
    network_id: str,
    resource_id: str,
    caller: Annotated[AuthenticatedUser, allowed("networks", "read")],
    context: InContext,
) -> Response:
    return ApiResponse(
        resource_json(get_resource(context.state, caller.account_id, network_id, resource_id), caller.account)
    )


@router.put("/{network_id}/resources/{resource_id}", response_model=shapes.NetworkResource)
async def put_resource(
    network_id: str,
    resource_id: str,
    caller: Annotated[AuthenticatedUser, allowed("networks", "update")],
    context: InContext,
    body: Annotated[NetworkResourceBody, sent_as(NetworkResourceBody)],
) -> Response:
    return await _save_resource(network_id, resource_id, body, caller, context)


@router.delete("/{network_id}/resources/{resource_id}", response_model=shapes.Nothing)
async def remove_resource(
    network_id: str,
    resource_id: str,
    caller: Annotated[AuthenticatedUser, allowed("networks", "delete")],
    context: InContext,
) -> Response:
    await delete_resource(context.state, caller.account_id, network_id, resource_id)
    return ApiResponse({})


@router.get("/{network_id}/routers", response_model=list[shapes.NetworkRouter])
async def list_routers(
    network_id: str, caller: Annotated[AuthenticatedUser, allowed("networks", "read")], context: InContext
) -> Response:
    network = get_network(context.state, caller.account_id, network_id)
    return ApiResponse([router_json(carrier) for carrier in network.routers])


@router.post("/{network_id}/routers", response_model=shapes.NetworkRouter)
async def post_router(
    network_id: str,
    caller: Annotated[AuthenticatedUser, allowed("networks", "create")],
    context: InContext,
    body: Annotated[NetworkRouterBody, sent_as(NetworkRouterBody)],
) -> Response:
    return await _save_router(network_id, "", body, caller, context)


@router.get("/{network_id}/routers/{router_id}", response_model=shapes.NetworkRouter)
async def one_router(
    network_id: str,
    router_id: str,
    caller: Annotated[AuthenticatedUser, allowed("networks", "read")],
    context: InContext,
) -> Response:
    return ApiResponse(router_json(get_router(context.state, caller.account_id, network_id, router_id)))


@router.put("/{network_id}/routers/{router_id}", response_model=shapes.NetworkRouter)
async def put_router(
    network_id: str,
    router_id: str,
    caller: Annotated[AuthenticatedUser, allowed("networks", "update")],
    context: InContext,
    body: Annotated[NetworkRouterBody, sent_as(NetworkRouterBody)],
) -> Response:
    return await _save_router(network_id, router_id, body, caller, context)


@router.delete("/{network_id}/routers/{router_id}", response_model=shapes.Nothing)
async def remove_router(
    network_id: str,
    router_id: str,
    caller: Annotated[AuthenticatedUser, allowed("networks", "delete")],
    context: InContext,
) -> Response:
    await delete_router(context.state, caller.account_id, network_id, router_id)
    return ApiResponse({})


async def _save_network(network_id: str, body: NetworkBody, caller: AuthenticatedUser, context: InContext) -> Response:
    network = await save_network(
        context.state, caller.account_id, network_id, name=body.name, description=body.description
    )
    return ApiResponse(network_json(network, context.account_of(caller)))


async def _save_resource(
    network_id: str, resource_id: str, body: NetworkResourceBody, caller: AuthenticatedUser, context: InContext
) -> Response:
    if body.groups is None:
        raise BadRequest("groups is required")
    resource = await save_resource(
        context.state,
        caller.account_id,
        network_id,
        NetworkResource(
            id=resource_id,
            name=body.name,
            type=ResourceType.DOMAIN,  # save_resource derives the type from the address
            address=body.address,
            groups=tuple(GroupId(id_) for id_ in body.groups),
            description=body.description,
            enabled=body.enabled,
        ),
    )
    return ApiResponse(resource_json(resource, context.account_of(caller)))


async def _save_router(
    network_id: str, router_id: str, body: NetworkRouterBody, caller: AuthenticatedUser, context: InContext
) -> Response:
    saved = await save_router(
        context.state,
        caller.account_id,
        network_id,
        NetworkRouter(
            id=router_id,
            metric=body.metric,
            masquerade=body.masquerade,
            enabled=body.enabled,
            peer=PeerId(body.peer) if body.peer else None,
            peer_groups=tuple(GroupId(id_) for id_ in body.peer_groups or ()),
        ),
    )
    return ApiResponse(router_json(saved))
