"""The caller's account."""

from typing import Annotated, Any

from fastapi import APIRouter
from starlette.responses import Response

from netbird_management.model.accounts import Account, AccountSettings
from netbird_management.model.errors import BadRequest, InvalidArgument, NotFound
from netbird_management.model.ids import GroupId
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.account_settings import SettingsChange, delete_account, update_account
from netbird_management.rest import shapes
from netbird_management.rest.auth import AuthenticatedUser, allowed
from netbird_management.rest.bodies import Body, Only
from netbird_management.rest.context import InContext
from netbird_management.rest.wire import ApiResponse, moment, sent_as

router = APIRouter(prefix="/accounts", tags=["accounts"])

REQUIRED = (
    "peer_login_expiration_enabled",
    "peer_login_expiration",
    "peer_inactivity_expiration_enabled",
    "peer_inactivity_expiration",
    "regular_users_view_blocked",
    "peer_expose_enabled",
    "peer_expose_groups",
)


class ExtraBody(Body):
    user_approval_required: bool | None = None
    peer_approval_enabled: Annotated[bool, Only(False)] = False
    network_traffic_logs_enabled: Annotated[bool, Only(False)] = False
    network_traffic_logs_groups: Annotated[list[str] | None, Only([])] = None
    network_traffic_packet_counter_enabled: Annotated[bool, Only(False)] = False


class SettingsBody(Body):
    peer_login_expiration_enabled: Annotated[bool | None, Only(False)] = None
    peer_login_expiration: int | None = None
    peer_inactivity_expiration_enabled: Annotated[bool | None, Only(False)] = None
    peer_inactivity_expiration: int | None = None
    regular_users_view_blocked: Annotated[bool | None, Only(True)] = None
    peer_expose_enabled: Annotated[bool | None, Only(False)] = None
    peer_expose_groups: list[str] | None = None
    groups_propagation_enabled: Annotated[bool | None, Only(True)] = None
    jwt_groups_enabled: Annotated[bool, Only(False)] = False
    jwt_groups_claim_name: Annotated[str, Only("")] = ""
    jwt_allow_groups: Annotated[list[str] | None, Only([])] = None
    routing_peer_dns_resolution_enabled: bool | None = None
    lazy_connection_enabled: bool | None = None
    ipv6_enabled_groups: list[str] | None = None
    auto_update_version: Annotated[str | None, Only("disabled")] = None
    auto_update_always: Annotated[bool, Only(False)] = False
    dns_domain: str = ""
    network_range: str = ""
    network_range_v6: str = ""
    extra: ExtraBody | None = None


class AccountBody(Body):
    answer = shapes.Account
    settings: SettingsBody | None = None


def account_json(snapshot: AccountSnapshot) -> dict[str, Any]:
    account = snapshot.account
    settings = account.settings
    return {
        "created_at": moment(account.created_at),
        "created_by": account.created_by,
        "domain": "",
        "domain_category": "",
        "id": account.id,
        "settings": {
            "dns_domain": account.dns_domain,
            "extra": {"user_approval_required": settings.user_approval_required},
            "groups_propagation_enabled": settings.groups_propagation_enabled,
            "ipv6_enabled_groups": _ipv6_groups(snapshot),
            "jwt_groups_enabled": False,
            "lazy_connection_enabled": settings.lazy_connection_enabled,
            "network_range": str(account.network),
            "network_range_v6": str(account.network_v6),
            "peer_expose_enabled": False,
            "peer_expose_groups": list(settings.peer_expose_groups),
            "peer_inactivity_expiration": settings.peer_inactivity_expiration,
            "peer_inactivity_expiration_enabled": False,
            "peer_login_expiration": settings.peer_login_expiration,
            "peer_login_expiration_enabled": False,
            "regular_users_view_blocked": True,
            "routing_peer_dns_resolution_enabled": settings.routing_peer_dns_resolution_enabled,
        },
    }


@router.get("", response_model=list[shapes.Account])
async def list_accounts(caller: Annotated[AuthenticatedUser, allowed("accounts", "read")]) -> Response:
    return ApiResponse([account_json(caller.account)])


@router.put("/{account_id}", response_model=shapes.Account)
async def put_account(
    account_id: str,
    caller: Annotated[AuthenticatedUser, allowed("settings", "update")],
    context: InContext,
    given: Annotated[AccountBody, sent_as(AccountBody)],
) -> Response:
    account = _own(account_id, caller)
    body = given.settings
    if body is None:
        raise BadRequest("settings are required")
    for name in REQUIRED:
        if getattr(body, name) is None:
            raise BadRequest(f"settings.{name} is required")
    for name, network in (("network_range", account.network), ("network_range_v6", account.network_v6)):
        if getattr(body, name) not in ("", str(network)):
            raise InvalidArgument(f"settings.{name} cannot be changed: peers have addresses of it")
    if body.ipv6_enabled_groups not in (None, _ipv6_groups(caller.account)):
        raise InvalidArgument("settings.ipv6_enabled_groups is not supported: it can only be the group All")
    old = account.settings

    def kept(value: bool | None, stored: bool) -> bool:
        return stored if value is None else value

    settings = AccountSettings(
        peer_login_expiration=body.peer_login_expiration or 0,
        peer_inactivity_expiration=body.peer_inactivity_expiration or 0,
        peer_expose_groups=tuple(GroupId(id_) for id_ in body.peer_expose_groups or ()),
        groups_propagation_enabled=old.groups_propagation_enabled,
        routing_peer_dns_resolution_enabled=kept(
            body.routing_peer_dns_resolution_enabled, old.routing_peer_dns_resolution_enabled
        ),
        lazy_connection_enabled=kept(body.lazy_connection_enabled, old.lazy_connection_enabled),
        user_approval_required=kept(
            None if body.extra is None else body.extra.user_approval_required, old.user_approval_required
        ),
    )
    await update_account(context.state, account.id, SettingsChange(settings, body.dns_domain))
    return ApiResponse(account_json(context.account_of(caller)))


@router.delete("/{account_id}", response_model=shapes.Nothing)
async def remove_account(
    account_id: str, caller: Annotated[AuthenticatedUser, allowed("accounts", "delete")], context: InContext
) -> Response:
    """The account with everything in it; the caller's own token goes as well."""
    await delete_account(context.state, _own(account_id, caller).id)
    return ApiResponse({})


def _own(account_id: str, caller: AuthenticatedUser) -> Account:
    if account_id != caller.account_id:
        raise NotFound(f"account {account_id} not found")
    return caller.account.account


def _ipv6_groups(account: AccountSnapshot) -> list[str]:
    """Every peer whose software takes part in IPv6 does."""
    return [account.group_all.id]
