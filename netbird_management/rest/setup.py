"""Creation of the first user, once, with the secret that the process prints while no account exists."""

import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from netbird_host.sources import source_of
from netbird_management.model.errors import InvalidArgument, PermissionDenied, PreconditionFailed
from netbird_management.operations.accounts import create_account
from netbird_management.operations.users import checked_email, create_token
from netbird_management.rest import shapes
from netbird_management.rest.bodies import Body
from netbird_management.rest.client_address import client_address
from netbird_management.rest.context import InContext
from netbird_management.rest.wire import ApiResponse, sent_as

router = APIRouter(tags=["setup"])
HEADER = "x-netbird-setup-secret"


class SetupRequest(Body):
    """`password` must be empty, as management verifies none. `create_pat` must be true, as the token in the response is
    the owner's only credential. `pat_expire_in` is in days."""

    email: str = ""
    password: str = ""
    name: str = ""
    create_pat: bool = True
    pat_expire_in: int = 1


@router.get("/instance", response_model=shapes.Instance)
async def instance(context: InContext) -> Response:
    return ApiResponse({"setup_required": not context.state.snapshots.all()})


async def check_open(context: InContext) -> None:
    """Raises `PreconditionFailed` if an account exists."""
    if context.state.snapshots.all():
        raise PreconditionFailed("setup already completed")


async def check_secret(request: Request, context: InContext) -> None:
    """Raises `PermissionDenied` for a wrong secret, and 429 for an address that sent too many of them.

    The secret is required from loopback too, as a reverse proxy on this machine forwards strangers' requests from
    there.
    """
    source = source_of(client_address(request, context.trusted_proxies))
    if context.setup_tries.is_empty(source):
        context.state.count("setup_guesses_refused")
        raise HTTPException(429, "too many wrong secrets from this address: try again in a minute")
    given = request.headers.get(HEADER, "")
    if not context.setup_secret or not hmac.compare_digest(given.encode(), context.setup_secret.encode()):
        context.setup_tries.take(source)
        raise PermissionDenied(
            f"setup requires the secret that management printed at its start, in the header {HEADER}"
        )


@router.post("/setup", response_model=shapes.SetUp, dependencies=[Depends(check_open), Depends(check_secret)])
async def setup(context: InContext, given: Annotated[SetupRequest, sent_as(SetupRequest)]) -> Response:
    """Creates the owner and a token. The owner's first login at the identity provider links to this user by e-mail
    address."""
    email = checked_email(given.email)
    if given.password:
        raise InvalidArgument("password is not supported; log in with the token or through the identity provider")
    if not given.create_pat:
        raise InvalidArgument("create_pat must be true: the token is the owner's only credential")
    if not given.name:
        raise InvalidArgument("name is required")
    if not 1 <= given.pat_expire_in <= 365:
        raise InvalidArgument("pat_expire_in must be between 1 and 365")
    _, user = await create_account(
        context.state, email=email, name=given.name, dns_domain=context.dns_domain, only_first=True
    )
    _, plain = await create_token(context.state, user, name="setup", days=given.pat_expire_in, created_by=user.id)
    return ApiResponse({"user_id": user.id, "email": user.email, "personal_access_token": plain})
