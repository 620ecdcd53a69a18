"""Parts of NetBird's API that this management does not support: 501 with the feature's name, or an empty list where
clients request one."""

from collections.abc import Callable
from typing import Annotated, Final

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

from netbird_management.rest.auth import AnyUser, AuthenticatedUser, allowed
from netbird_management.rest.wire import ApiResponse

router = APIRouter(include_in_schema=False)
EMPTY: Final = {
    "/posture-checks": ("policies", "posture checks"),
    "/routes": ("routes", "routes; use networks"),
    "/users/invites": ("users", "invitations; users log in through the identity provider with their e-mail address"),
    "/identity-providers": ("identity_providers", "identity providers; configure one in the settings under [oidc]"),
}
"""Lists that clients request, each with the permission module that reading requires and the name in the error for a
change."""
REFUSED: Final = {
    "/users/{rest}/invite": "invitations; users log in through the identity provider with their e-mail address",
    "/users/{rest}/password": "passwords",
    "/locations/countries": "locations",
    "/locations/countries/{rest}/cities": "locations",
    "/events/network-traffic": "network traffic events",
    "/peers/{rest}/jobs": "remote jobs",
    "/peers/{rest}/temporary-access": "temporary access",
    "/peers/{rest}/ingress/ports": "ingress ports",
    "/ingress/peers": "ingress peers",
    "/integrations/{rest:path}": "integrations",
}
_METHODS: Final = ["GET", "POST", "PUT", "DELETE"]


def _refusing(name: str) -> Callable[..., object]:
    async def refuse(caller: AnyUser) -> Response:
        raise HTTPException(501, f"not supported by this management: {name}")

    return refuse


def _empty(module: str) -> Callable[..., object]:
    async def nothing(caller: Annotated[AuthenticatedUser, allowed(module, "read")]) -> Response:
        return ApiResponse([])

    return nothing


for _path, (_module, _name) in EMPTY.items():
    router.add_api_route(_path, _empty(_module), methods=["GET"])
    router.add_api_route(_path, _refusing(_name), methods=_METHODS[1:])
    router.add_api_route(_path + "/{rest}", _refusing(_name), methods=_METHODS)
for _path, _name in REFUSED.items():
    router.add_api_route(_path, _refusing(_name), methods=_METHODS)
