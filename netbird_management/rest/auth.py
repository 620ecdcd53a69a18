"""Authentication of API requests: a personal access token, or an ID token of the identity provider, in `Authorization`.
Cookies never authenticate a request."""

import logging
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader
from starlette.exceptions import HTTPException

from netbird_management.login.identity_provider import ProviderFailed
from netbird_management.model.accounts import Role, User
from netbird_management.model.admission import Refusal, refusal
from netbird_management.model.errors import PermissionDenied, Unauthorized
from netbird_management.model.ids import AccountId, UserId
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.users import user_of_token
from netbird_management.rest.context import Context, context_of
from netbird_management.rest.permissions import Operation, may
from netbird_management.rest.requests import request_id
from netbird_management.store.state import acting

_log = logging.getLogger(__name__)
_REFUSALS: Final = {
    Refusal.USER_NOT_FOUND: "user not found",
    Refusal.PENDING_APPROVAL: "user is pending approval",
    Refusal.USER_BLOCKED: "user is blocked",
}


@dataclass(frozen=True, slots=True)
class AuthenticatedUser:
    """The user whose token a request carries, with the account as it was when the request arrived.

    Plugins see it as `steps.ApiCaller`.
    """

    user: User
    account: AccountSnapshot

    @property
    def account_id(self) -> AccountId:
        return self.account.account.id

    @property
    def is_admin(self) -> bool:
        return self.user.role in (Role.OWNER, Role.ADMIN)

    def may(self, module: str, operation: Operation) -> bool:
        return may(self.user, module, operation)


# The OpenAPI document alone uses this; `authenticate` reads the header itself.
_SCHEME = APIKeyHeader(
    name="Authorization",
    scheme_name="token",
    description="`Token nbp_…`, a personal access token",
    auto_error=False,
)


async def authenticate(
    request: Request, context: Annotated[Context, Depends(context_of)], _header: Annotated[str | None, Depends(_SCHEME)]
) -> AuthenticatedUser:
    """Raises `Unauthorized`, and `PermissionDenied` for a user who is blocked or awaits approval."""
    try:
        return await _authenticated_user(request, context)
    except (Unauthorized, PermissionDenied) as error:
        context.state.count("rest_authentications_refused")
        refused = {"request_id": request_id(request), "reason": error.message}
        _log.info("rest.authentication.refused", extra=refused)
        raise


async def _authenticated_user(request: Request, context: Context) -> AuthenticatedUser:
    given = request.headers.getlist("authorization")
    if len(given) != 1:
        raise Unauthorized("no valid authentication provided")
    scheme, _, token = given[0].partition(" ")
    if scheme.lower() not in ("token", "bearer") or not token:
        raise Unauthorized("no valid authentication provided")
    user_id = await _user_of(token.strip(), scheme, context)
    if user_id is None:
        raise Unauthorized("token invalid")
    for account in context.state.snapshots.all():
        user = account.users.get(user_id)
        if user is None:
            continue
        if (reason := refusal(user)) is not None:
            raise PermissionDenied(_REFUSALS[reason])
        acting.set(user.id)
        return AuthenticatedUser(user, account)
    raise Unauthorized("token invalid")


async def _user_of(token: str, scheme: str, context: Context) -> UserId | None:
    """The owner of the token; None if the token is not valid. `scheme` is as the client sent it.

    A personal token is valid under either scheme, an ID token only as `Bearer` and only of a user who has logged in
    before.
    """
    if scheme.lower() == "bearer" and token.count(".") == 2 and context.sign_on is not None:
        try:
            return await context.sign_on.bearer(token)
        except ProviderFailed as error:
            raise HTTPException(503, "the identity provider is unavailable") from error
    return await user_of_token(context.state, token)


def allowed(module: str, operation: Operation) -> Any:
    """A dependency that yields the caller. Raises `PermissionDenied` unless their role permits the operation."""

    async def check(caller: Annotated[AuthenticatedUser, Depends(authenticate)]) -> AuthenticatedUser:
        if not caller.may(module, operation):
            raise PermissionDenied("permission denied")
        return caller

    return Depends(check)


AnyUser = Annotated[AuthenticatedUser, Depends(authenticate)]
