"""Users and their personal access tokens."""

from typing import Annotated, Any

from fastapi import APIRouter
from starlette.responses import Response

from netbird_management.model.accounts import Role, User
from netbird_management.model.errors import BadRequest, InvalidArgument, NotFound, PermissionDenied
from netbird_management.model.ids import GroupId, TokenId, UserId
from netbird_management.operations.users import (
    PersonalToken,
    approve_user,
    create_token,
    create_user,
    delete_token,
    delete_user,
    reject_user,
    tokens_of,
    update_user,
)
from netbird_management.rest import shapes
from netbird_management.rest.auth import AnyUser, AuthenticatedUser, allowed
from netbird_management.rest.bodies import Body, Only
from netbird_management.rest.context import InContext
from netbird_management.rest.permissions import permissions_json
from netbird_management.rest.wire import ApiResponse, moment, sent_as

router = APIRouter(tags=["users"])


class UserRequest(Body):
    """The request that creates a user."""

    answer = shapes.User
    role: str = ""
    auto_groups: list[str] | None = None
    is_service_user: bool = False
    is_blocked: Annotated[bool, Only(False)] = False
    email: str = ""
    name: str = ""


class UserUpdate(Body):
    """The request that changes a user. Clients send `email`, `name` and `is_service_user` back; they cannot change."""

    answer = shapes.User
    role: str = ""
    auto_groups: list[str] | None = None
    is_blocked: bool | None = None
    is_service_user: bool | None = None
    email: str | None = None
    name: str | None = None


class TokenRequest(Body):
    name: str = ""
    expires_in: int = 0


def user_json(user: User, caller: AuthenticatedUser) -> dict[str, Any]:
    return {
        "auto_groups": list(user.auto_groups),
        "email": user.email,
        "id": user.id,
        "idp_id": "local",
        "is_blocked": user.blocked,
        "is_current": user.id == caller.user.id,
        "is_service_user": user.is_service_user,
        "issued": "api",
        "last_login": moment(user.last_login),
        "name": user.name,
        "pending_approval": user.pending_approval,
        "role": user.role.value,
        "status": "blocked" if user.blocked else "active",
    }


def token_json(token: PersonalToken) -> dict[str, Any]:
    answer = {
        "created_at": moment(token.created_at),
        "created_by": token.created_by,
        "expiration_date": moment(token.expires_at),
        "id": token.id,
        "name": token.name,
    }
    return answer if token.last_used is None else {**answer, "last_used": moment(token.last_used)}


@router.get("/users", response_model=list[shapes.User])
async def list_users(
    caller: Annotated[AuthenticatedUser, allowed("users", "read")], service_user: bool | None = None
) -> Response:
    users = sorted(caller.account.users.values(), key=lambda user: user.id)
    return ApiResponse(
        [user_json(user, caller) for user in users if service_user is None or user.is_service_user is service_user]
    )


@router.get("/users/current", response_model=shapes.CurrentUser)
async def current_user(caller: AnyUser) -> Response:
    return ApiResponse({**user_json(caller.user, caller), "permissions": permissions_json(caller.user)})


@router.post("/users", response_model=shapes.User)
async def post_user(
    caller: Annotated[AuthenticatedUser, allowed("users", "create")],
    context: InContext,
    body: Annotated[UserRequest, sent_as(UserRequest)],
) -> Response:
    user = await create_user(
        context.state,
        caller.account_id,
        role=_role(body.role),
        email=body.email,
        name=body.name,
        auto_groups=[GroupId(id_) for id_ in body.auto_groups or ()],
        is_service_user=body.is_service_user,
    )
    return ApiResponse(user_json(user, caller))


@router.put("/users/{user_id}", response_model=shapes.User)
async def put_user(
    user_id: str,
    caller: Annotated[AuthenticatedUser, allowed("users", "update")],
    context: InContext,
    body: Annotated[UserUpdate, sent_as(UserUpdate)],
) -> Response:
    if body.auto_groups is None:
        raise BadRequest("auto_groups is required")
    shown = caller.account.users.get(UserId(user_id))
    for name in ("is_service_user", "email", "name"):
        if shown is not None and getattr(body, name) not in (None, getattr(shown, name)):
            raise InvalidArgument(f"{name} cannot be changed")
    if user_id == caller.user.id and (body.is_blocked or body.role != caller.user.role):
        raise PermissionDenied("you can neither block yourself nor change your own role")
    user = await update_user(
        context.state,
        caller.account_id,
        UserId(user_id),
        role=_role(body.role),
        auto_groups=[GroupId(id_) for id_ in body.auto_groups],
        blocked=body.is_blocked,
    )
    return ApiResponse(user_json(user, caller))


@router.post("/users/{user_id}/approve", response_model=shapes.User)
async def approve(
    user_id: str, caller: Annotated[AuthenticatedUser, allowed("users", "update")], context: InContext
) -> Response:
    return ApiResponse(user_json(await approve_user(context.state, caller.account_id, UserId(user_id)), caller))


@router.delete("/users/{user_id}/reject", response_model=shapes.Nothing)
async def reject(
    user_id: str, caller: Annotated[AuthenticatedUser, allowed("users", "delete")], context: InContext
) -> Response:
    await reject_user(context.state, caller.account_id, UserId(user_id))
    return ApiResponse({})


@router.delete("/users/{user_id}", response_model=shapes.Nothing)
async def remove_user(
    user_id: str, caller: Annotated[AuthenticatedUser, allowed("users", "delete")], context: InContext
) -> Response:
    if user_id == caller.user.id:
        raise PermissionDenied("you cannot delete yourself")
    await delete_user(context.state, caller.account_id, UserId(user_id))
    return ApiResponse({})


@router.get("/users/{user_id}/tokens", response_model=list[shapes.PersonalToken])
async def list_tokens(user_id: str, caller: AnyUser, context: InContext) -> Response:
    user = _token_owner(user_id, caller)
    return ApiResponse([token_json(token) for token in await tokens_of(context.state, user.id)])


@router.post("/users/{user_id}/tokens", response_model=shapes.NewPersonalToken)
async def post_token(
    user_id: str, caller: AnyUser, context: InContext, body: Annotated[TokenRequest, sent_as(TokenRequest)]
) -> Response:
    user = _token_owner(user_id, caller)
    token, plain = await create_token(
        context.state, user, name=body.name, days=body.expires_in, created_by=caller.user.id
    )
    return ApiResponse({"personal_access_token": token_json(token), "plain_token": plain})


@router.get("/users/{user_id}/tokens/{token_id}", response_model=shapes.PersonalToken)
async def get_token(user_id: str, token_id: str, caller: AnyUser, context: InContext) -> Response:
    user = _token_owner(user_id, caller)
    for token in await tokens_of(context.state, user.id):
        if token.id == token_id:
            return ApiResponse(token_json(token))
    raise NotFound(f"pat: {token_id} not found")


@router.delete("/users/{user_id}/tokens/{token_id}", response_model=shapes.Nothing)
async def remove_token(user_id: str, token_id: str, caller: AnyUser, context: InContext) -> Response:
    user = _token_owner(user_id, caller)
    await delete_token(context.state, user, TokenId(token_id))
    return ApiResponse({})


def _token_owner(user_id: str, caller: AuthenticatedUser) -> User:
    """The user whose tokens the caller may manage: the caller; for an administrator also any service user.

    Nobody manages another person's tokens, as a token permits its holder to act as that person. Raises
    `PermissionDenied`.
    """
    if user_id == caller.user.id:
        return caller.user
    user = caller.account.users.get(UserId(user_id)) if caller.is_admin else None
    if user is None or not user.is_service_user:
        raise PermissionDenied("permission denied")
    return user


def _role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError as error:
        raise InvalidArgument(f'role must be one of {", ".join(Role)}, not "{text[:64]}"') from error
