"""The caller's account."""

from dataclasses import asdict

from fastapi import APIRouter
from starlette.responses import Response

from netbird_management.rest.auth import AdminCaller
from netbird_management.rest.json import ApiResponse, moment

router = APIRouter()


@router.get("/accounts")
async def list_accounts(who: AdminCaller) -> Response:
    account = who.account.account
    settings = {
        **asdict(account.settings),
        "dns_domain": account.dns_domain,
        "network_range": str(account.network),
        "network_range_v6": str(account.network_v6),
    }
    return ApiResponse(
        [
            {
                "created_at": moment(account.created_at),
                "created_by": account.created_by,
                "domain": "",
                "domain_category": "",
                "id": account.id,
                "settings": settings,
            }
        ]
    )
