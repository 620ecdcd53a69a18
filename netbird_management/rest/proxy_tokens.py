"""Access tokens for an account's own proxies. Only the command line creates management-wide tokens."""

from typing import Annotated, Any

from fastapi import APIRouter
from starlette.responses import Response

from netbird_management.model.ids import TokenId
from netbird_management.operations.proxy_tokens import (
    ProxyToken,
    create_proxy_token,
    proxy_tokens_of,
    revoke_proxy_token,
)
from netbird_management.rest import shapes
from netbird_management.rest.auth import AuthenticatedUser, allowed
from netbird_management.rest.bodies import Body
from netbird_management.rest.context import InContext
from netbird_management.rest.wire import ApiResponse, moment, sent_as

router = APIRouter(prefix="/reverse-proxies/proxy-tokens", tags=["reverse-proxies"])


class ProxyTokenBody(Body):
    answer = shapes.ProxyToken
    name: str = ""
    expires_in: int = 0


def token_json(token: ProxyToken) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "created_at": moment(token.created_at),
        "id": token.id,
        "name": token.name,
        "revoked": token.revoked,
    }
    if token.expires_at is not None:
        answer["expires_at"] = moment(token.expires_at)
    if token.last_used is not None:
        answer["last_used"] = moment(token.last_used)
    return answer


@router.get("", response_model=list[shapes.ProxyToken])
async def list_tokens(
    caller: Annotated[AuthenticatedUser, allowed("services", "read")], context: InContext
) -> Response:
    return ApiResponse([token_json(token) for token in await proxy_tokens_of(context.state, caller.account_id)])


@router.post("", response_model=shapes.NewProxyToken)
async def post_token(
    caller: Annotated[AuthenticatedUser, allowed("services", "create")],
    context: InContext,
    body: Annotated[ProxyTokenBody, sent_as(ProxyTokenBody)],
) -> Response:
    token, plain = await create_proxy_token(
        context.state,
        name=body.name,
        account_id=caller.account_id,
        created_by=caller.user.id,
        expires_in=body.expires_in,
    )
    return ApiResponse({**token_json(token), "plain_token": plain})


@router.delete("/{token_id}", response_model=shapes.Nothing)
async def revoke_token(
    token_id: str, caller: Annotated[AuthenticatedUser, allowed("services", "delete")], context: InContext
) -> Response:
    await revoke_proxy_token(context.state, caller.account_id, TokenId(token_id))
    return ApiResponse({})
