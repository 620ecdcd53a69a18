"""Setup keys, which enroll peers."""

from typing import Annotated, Any

from fastapi import APIRouter
from starlette.responses import Response

from netbird_management.model.errors import BadRequest
from netbird_management.model.ids import GroupId
from netbird_management.operations.setup_keys import (
    SetupKey,
    SetupKeyState,
    create_setup_key,
    delete_setup_key,
    get_setup_key,
    setup_keys_of,
    update_setup_key,
)
from netbird_management.rest import shapes
from netbird_management.rest.auth import AuthenticatedUser, allowed
from netbird_management.rest.bodies import Body
from netbird_management.rest.context import InContext
from netbird_management.rest.wire import ApiResponse, moment, sent_as

router = APIRouter(prefix="/setup-keys", tags=["setup-keys"])


class NewSetupKey(Body):
    answer = shapes.SetupKey
    name: str = ""
    type: str = ""
    expires_in: int = 0
    auto_groups: list[str] | None = None
    usage_limit: int = 0
    ephemeral: bool = False
    allow_extra_dns_labels: bool = False


class SetupKeyUpdate(Body):
    answer = shapes.SetupKey
    revoked: bool = False
    auto_groups: list[str] | None = None


def key_json(key: SetupKey, shown: str | None = None) -> dict[str, Any]:
    """`shown` is the whole key, for the response that creates it; other responses contain its hint."""
    return {
        "allow_extra_dns_labels": key.allow_extra_dns_labels,
        "auto_groups": list(key.auto_groups),
        "ephemeral": key.ephemeral,
        "expires": moment(key.expires_at),
        "id": key.id,
        "key": shown or key.hint + "****",
        "last_used": moment(key.last_used),
        "name": key.name,
        "revoked": key.revoked,
        "state": key.state.value,
        "type": key.kind,
        "updated_at": moment(key.updated_at),
        "usage_limit": key.usage_limit,
        "used_times": key.used_times,
        "valid": key.state is SetupKeyState.VALID,
    }


@router.get("", response_model=list[shapes.SetupKey])
async def list_keys(
    caller: Annotated[AuthenticatedUser, allowed("setup_keys", "read")], context: InContext
) -> Response:
    return ApiResponse([key_json(key) for key in await setup_keys_of(context.state, caller.account_id)])


@router.post("", response_model=shapes.SetupKey)
async def post_key(
    caller: Annotated[AuthenticatedUser, allowed("setup_keys", "create")],
    context: InContext,
    body: Annotated[NewSetupKey, sent_as(NewSetupKey)],
) -> Response:
    key, plain = await create_setup_key(
        context.state,
        caller.account_id,
        name=body.name,
        kind=body.type,
        expires_in=body.expires_in,
        auto_groups=[GroupId(id_) for id_ in body.auto_groups or ()],
        usage_limit=body.usage_limit,
        ephemeral=body.ephemeral,
        allow_extra_dns_labels=body.allow_extra_dns_labels,
    )
    return ApiResponse(key_json(key, plain))


@router.get("/{key_id}", response_model=shapes.SetupKey)
async def get_key(
    key_id: str, caller: Annotated[AuthenticatedUser, allowed("setup_keys", "read")], context: InContext
) -> Response:
    return ApiResponse(key_json(await get_setup_key(context.state, caller.account_id, key_id)))


@router.put("/{key_id}", response_model=shapes.SetupKey)
async def put_key(
    key_id: str,
    caller: Annotated[AuthenticatedUser, allowed("setup_keys", "update")],
    context: InContext,
    body: Annotated[SetupKeyUpdate, sent_as(SetupKeyUpdate)],
) -> Response:
    if body.auto_groups is None:
        raise BadRequest("auto_groups is required")
    groups = [GroupId(id_) for id_ in body.auto_groups]
    key = await update_setup_key(context.state, caller.account_id, key_id, revoked=body.revoked, auto_groups=groups)
    return ApiResponse(key_json(key))


@router.delete("/{key_id}", response_model=shapes.Nothing)
async def remove_key(
    key_id: str, caller: Annotated[AuthenticatedUser, allowed("setup_keys", "delete")], context: InContext
) -> Response:
    await delete_setup_key(context.state, caller.account_id, key_id)
    return ApiResponse({})
