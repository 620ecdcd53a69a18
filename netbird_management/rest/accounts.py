"""The caller's account."""

from dataclasses import replace
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
    peer_login_expiration_enabled: bool | None = None
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
            "peer_login_expiration_enabled": settings.peer_login_expiration_enabled,
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
    body: Annotated[AccountBody, sent_as(AccountBody)],
) -> Response:
    """Changes the settings. An optional field that is absent keeps its value."""
    account = _own(account_id, caller)
    sent = body.settings
    if sent is None:
        raise BadRequest("settings is required")
    _check(sent, caller.account)
    settings = _changed(account.settings, sent)
    await update_account(context.state, account.id, SettingsChange(settings, sent.dns_domain))
    return ApiResponse(account_json(context.account_of(caller)))


@router.delete("/{account_id}", response_model=shapes.Nothing)
async def remove_account(
    account_id: str, caller: Annotated[AuthenticatedUser, allowed("accounts", "delete")], context: InContext
) -> Response:
    """Deletes the account with everything in it, the caller's own token included."""
    await delete_account(context.state, _own(account_id, caller).id)
    return ApiResponse({})


def _own(account_id: str, caller: AuthenticatedUser) -> Account:
    if account_id != caller.account_id:
        raise NotFound(f"account {account_id} not found")
    return caller.account.account


def _check(sent: SettingsBody, account: AccountSnapshot) -> None:
    """Raises `BadRequest` for an absent field, and `InvalidArgument` for a change of what cannot change."""
    for name in REQUIRED:
        if getattr(sent, name) is None:
            raise BadRequest(f"settings.{name} is required")
    stored = account.account
    for name, network in (("network_range", stored.network), ("network_range_v6", stored.network_v6)):
        if getattr(sent, name) not in ("", str(network)):
            raise InvalidArgument(f"settings.{name} cannot be changed: peers have addresses in {network}")
    if sent.ipv6_enabled_groups not in (None, _ipv6_groups(account)):
        raise InvalidArgument("settings.ipv6_enabled_groups is not supported; it must be the group All")


def _changed(stored: AccountSettings, sent: SettingsBody) -> AccountSettings:
    """The stored settings with the values that the client sent."""
    optional: dict[str, Any] = {
        "lazy_connection_enabled": sent.lazy_connection_enabled,
        "routing_peer_dns_resolution_enabled": sent.routing_peer_dns_resolution_enabled,
        "user_approval_required": None if sent.extra is None else sent.extra.user_approval_required,
    }
    return replace(
        stored,
        peer_login_expiration_enabled=bool(sent.peer_login_expiration_enabled),
        peer_login_expiration=sent.peer_login_expiration or 0,
        peer_inactivity_expiration=sent.peer_inactivity_expiration or 0,
        peer_expose_groups=tuple(GroupId(id_) for id_ in sent.peer_expose_groups or ()),
        **{name: value for name, value in optional.items() if value is not None},
    )


def _ipv6_groups(account: AccountSnapshot) -> list[str]:
    """The groups whose peers use IPv6: the group All, as every peer whose software supports IPv6 uses it."""
    return [account.group_all.id]
