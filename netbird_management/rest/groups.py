"""Groups of peers."""

from typing import Annotated, Any, Final

from fastapi import APIRouter
from starlette.responses import Response

from netbird_management.model.accounts import Group
from netbird_management.model.errors import InvalidArgument, NotFound
from netbird_management.model.ids import GroupId, PeerId
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.groups import create_group, delete_group, update_group
from netbird_management.rest import shapes
from netbird_management.rest.auth import AuthenticatedUser, allowed
from netbird_management.rest.bodies import Body
from netbird_management.rest.context import InContext
from netbird_management.rest.wire import ApiResponse, sent_as

router = APIRouter(tags=["groups"])


NOT_ASCII: Final = (
    "the name has characters outside ASCII: "
    "the proxy's setting identity_headers.non_ascii decides how X-NetBird-Groups carries it"
)


class GroupRequest(Body):
    answer = shapes.Group
    name: str = ""
    peers: list[str] | None = None
    resources: list[dict[str, str]] | None = None


def group_json(group: Group, account: AccountSnapshot) -> dict[str, Any]:
    resources = account.resources_in(group.id)
    peers = sorted((account.peers[id_] for id_ in group.peers if id_ in account.peers), key=lambda peer: peer.id)
    return {
        **({} if group.name.isascii() else {"warning": NOT_ASCII}),
        "id": group.id,
        "issued": group.issued,
        "name": group.name,
        "peers": [{"id": peer.id, "name": peer.name} for peer in peers] or None,
        "peers_count": len(peers),
        "resources": [{"id": resource.id, "type": str(resource.type)} for resource in resources] or None,
        "resources_count": len(resources),
    }


def group_minimum(group: Group, account: AccountSnapshot) -> dict[str, Any]:
    return {
        "id": group.id,
        "name": group.name,
        "peers_count": len(group.peers),
        "resources_count": len(account.resources_in(group.id)),
    }


@router.get("/groups", response_model=list[shapes.Group])
async def list_groups(
    caller: Annotated[AuthenticatedUser, allowed("groups", "read")], name: str | None = None
) -> Response:
    groups = sorted(caller.account.groups.values(), key=lambda group: group.id)
    if name is not None:
        groups = [group for group in groups if group.name == name]
        if not groups:
            raise NotFound(f"group with name {name} not found")
    return ApiResponse([group_json(group, caller.account) for group in groups])


@router.post("/groups", response_model=shapes.Group)
async def post_group(
    caller: Annotated[AuthenticatedUser, allowed("groups", "create")],
    context: InContext,
    body: Annotated[GroupRequest, sent_as(GroupRequest)],
) -> Response:
    _check_resources(body, caller.account, None)
    peers = [PeerId(id_) for id_ in body.peers or ()]
    group = await create_group(context.state, caller.account_id, name=body.name, peers=peers)
    return _answer(group, caller, context)


@router.get("/groups/{group_id}", response_model=shapes.Group)
async def get_group(group_id: str, caller: Annotated[AuthenticatedUser, allowed("groups", "read")]) -> Response:
    group = caller.account.groups.get(GroupId(group_id))
    if group is None:
        raise NotFound(f"group: {group_id} not found")
    return ApiResponse(group_json(group, caller.account))


@router.put("/groups/{group_id}", response_model=shapes.Group)
async def put_group(
    group_id: str,
    caller: Annotated[AuthenticatedUser, allowed("groups", "update")],
    context: InContext,
    body: Annotated[GroupRequest, sent_as(GroupRequest)],
) -> Response:
    _check_resources(body, caller.account, GroupId(group_id))
    peers = None if body.peers is None else [PeerId(id_) for id_ in body.peers]
    group = await update_group(context.state, caller.account_id, GroupId(group_id), name=body.name, peers=peers)
    return _answer(group, caller, context)


@router.delete("/groups/{group_id}", response_model=shapes.Nothing)
async def remove_group(
    group_id: str, caller: Annotated[AuthenticatedUser, allowed("groups", "delete")], context: InContext
) -> Response:
    await delete_group(context.state, caller.account_id, GroupId(group_id))
    return ApiResponse({})


def _check_resources(body: GroupRequest, account: AccountSnapshot, group_id: GroupId | None) -> None:
    """Raises `InvalidArgument` for resources that differ from the group's: a resource lists its groups itself."""
    current = set() if group_id is None else {resource.id for resource in account.resources_in(group_id)}
    if body.resources is not None and {resource.get("id", "") for resource in body.resources} != current:
        raise InvalidArgument("resources of a group cannot be changed: change the groups of the resource instead")


def _answer(group: Group, caller: AuthenticatedUser, context: InContext) -> Response:
    return ApiResponse(group_json(group, context.account_of(caller)))
