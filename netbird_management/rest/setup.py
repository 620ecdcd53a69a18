"""The first user: made once, from this machine or with the secret that was printed at the first start."""

import hmac
from ipaddress import ip_address

from fastapi import APIRouter, Request
from starlette.responses import Response

from netbird_management.model.errors import InvalidArgument, PermissionDenied, PreconditionFailed
from netbird_management.operations.accounts import create_account
from netbird_management.operations.users import checked_email, create_token
from netbird_management.rest.context import Context, InContext
from netbird_management.rest.json import ApiResponse, Body, read_body
from netbird_management.secrets.passwords import hash_secret

router = APIRouter()
HEADER = "x-netbird-setup-secret"


class SetupRequest(Body):
    email: str = ""
    password: str = ""
    name: str = ""
    create_pat: bool = False
    pat_expire_in: int = 1


@router.get("/instance")
async def instance(context: InContext) -> Response:
    return ApiResponse({"setup_required": not context.state.snapshots.all()})


@router.post("/setup")
async def setup(request: Request, context: InContext) -> Response:
    _check_origin(request, context)
    given, _ = await read_body(request, SetupRequest)
    email = checked_email(given.email)
    if not 8 <= len(given.password.encode()) <= 72:
        raise InvalidArgument("password must be between 8 and 72 bytes")
    if not given.name:
        raise InvalidArgument("name is required")
    if given.create_pat and not 1 <= given.pat_expire_in <= 365:
        raise InvalidArgument("pat_expire_in must be between 1 and 365")
    if context.state.snapshots.all():
        raise PreconditionFailed("setup already completed")
    hashed = await hash_secret(given.password)
    _, user = await create_account(
        context.state,
        email=email,
        name=given.name,
        password_hash=hashed,
        dns_domain=context.dns_domain,
        only_first=True,
    )
    answer = {"user_id": user.id, "email": user.email}
    if given.create_pat:
        _, plain = await create_token(context.state, user, name="setup", days=given.pat_expire_in, created_by=user.id)
        answer["personal_access_token"] = plain
    return ApiResponse(answer)


def _check_origin(request: Request, context: Context) -> None:
    """Raises `PermissionDenied` unless the caller sits on this machine, or knows the secret.

    A proxy or a browser on this machine may speak for anybody: so nothing forwarded, a loopback name in Host (against
    rebound names), and JSON (which no page of another site can send unasked).
    """
    given = request.headers.get(HEADER, "")
    if context.setup_secret and hmac.compare_digest(given.encode(), context.setup_secret.encode()):
        return
    headers = request.headers
    forwarded = any(name in headers for name in ("forwarded", "x-forwarded-for", "x-real-ip", "via", "origin"))
    is_json = headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
    here = request.client is not None and _is_loopback(request.client.host)
    if not here or forwarded or not is_json or not _is_loopback(request.url.hostname or ""):
        raise PermissionDenied("setup is answered on loopback, or with the secret printed at the first start")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
