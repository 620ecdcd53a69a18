"""Services, which the reverse proxies expose."""

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from netbird_management.model.ids import ServiceId
from netbird_management.model.services import Service
from netbird_management.operations.services import create_service, delete_service, get_service, update_service
from netbird_management.operations.statuses import certificates_issued, proxy_statuses, worst_statuses
from netbird_management.rest import shapes
from netbird_management.rest.auth import AuthenticatedUser, allowed
from netbird_management.rest.context import Context, InContext
from netbird_management.rest.service_json import ServiceBody, proxy_status_json, sent_names, service_json, service_of
from netbird_management.rest.wire import ApiResponse, SentJson, sent_as

router = APIRouter(prefix="/reverse-proxies/services", tags=["reverse-proxies"])


@router.get("", response_model=list[shapes.Service])
async def list_services(
    caller: Annotated[AuthenticatedUser, allowed("services", "read")], context: InContext
) -> Response:
    worst = await worst_statuses(context.state, caller.account_id)
    issued = await certificates_issued(context.state, caller.account_id)
    services = sorted(caller.account.services.values(), key=lambda service: service.id)
    return ApiResponse(
        [service_json(service, caller.account, worst.get(service.id), issued.get(service.id)) for service in services]
    )


@router.post("", response_model=shapes.Service)
async def post_service(
    caller: Annotated[AuthenticatedUser, allowed("services", "create")],
    context: InContext,
    body: Annotated[ServiceBody, sent_as(ServiceBody)],
    raw: SentJson,
) -> Response:
    given = service_of(body, caller.account_id, ServiceId(""))
    service = await create_service(
        context.state, context.hooks, given, sent_names(raw), refused_domains=context.refused_domains
    )
    return await _answer(service, caller, context)


@router.get("/{service_id}", response_model=shapes.Service)
async def get_one(
    service_id: str, caller: Annotated[AuthenticatedUser, allowed("services", "read")], context: InContext
) -> Response:
    return await _answer(get_service(context.state, caller.account_id, ServiceId(service_id)), caller, context)


@router.put("/{service_id}", response_model=shapes.Service)
async def put_service(
    service_id: str,
    caller: Annotated[AuthenticatedUser, allowed("services", "update")],
    context: InContext,
    body: Annotated[ServiceBody, sent_as(ServiceBody)],
    raw: SentJson,
) -> Response:
    stored = caller.account.services.get(ServiceId(service_id))
    given = service_of(body, caller.account_id, ServiceId(service_id), "" if stored is None else stored.mode)
    service = await update_service(
        context.state,
        context.hooks,
        given,
        sent_names(raw),
        confirm_public=body.confirm_public,
        refused_domains=context.refused_domains,
    )
    return await _answer(service, caller, context)


@router.delete("/{service_id}", response_model=shapes.Nothing)
async def remove_service(
    service_id: str, caller: Annotated[AuthenticatedUser, allowed("services", "delete")], context: InContext
) -> Response:
    await delete_service(context.state, caller.account_id, ServiceId(service_id))
    return ApiResponse({})


@router.get("/{service_id}/proxies", response_model=list[shapes.ProxyStatus])
async def list_proxies(
    service_id: str, caller: Annotated[AuthenticatedUser, allowed("services", "read")], context: InContext
) -> Response:
    """The status of the service on each proxy, with the reason where management withholds it."""
    service = get_service(context.state, caller.account_id, ServiceId(service_id))
    return ApiResponse([proxy_status_json(status) for status in await proxy_statuses(context.state, service.id)])


async def _answer(service: Service, caller: AuthenticatedUser, context: Context) -> Response:
    account = context.account_of(caller)
    worst = await worst_statuses(context.state, caller.account_id, service.id)
    issued = await certificates_issued(context.state, caller.account_id, service.id)
    return ApiResponse(service_json(service, account, worst.get(service.id), issued.get(service.id)))
