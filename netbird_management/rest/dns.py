"""DNS: nameserver groups, zones, and the groups whose peers management does not configure."""

from typing import Annotated, Any

from fastapi import APIRouter
from starlette.responses import Response

from netbird_management.model.accounts import Nameserver, NameserverGroup, Zone, ZoneRecord
from netbird_management.model.errors import BadRequest, NotFound
from netbird_management.model.ids import GroupId
from netbird_management.operations.dns import (
    delete_nameservers,
    delete_record,
    delete_zone,
    get_nameservers,
    get_zone,
    save_nameservers,
    save_record,
    save_zone,
    set_disabled_groups,
)
from netbird_management.rest import shapes
from netbird_management.rest.auth import AuthenticatedUser, allowed
from netbird_management.rest.bodies import DESCRIPTION, Body, Only
from netbird_management.rest.context import InContext
from netbird_management.rest.wire import ApiResponse, sent_as

router = APIRouter(prefix="/dns", tags=["dns"])


class DnsSettingsBody(Body):
    disabled_management_groups: list[str] | None = None


class NameserverBody(Body):
    ip: str = ""
    ns_type: Annotated[str, Only("udp")] = "udp"
    port: int = 53


class NameserverGroupBody(Body):
    answer = shapes.NameserverGroup
    name: str = ""
    description: Annotated[str, DESCRIPTION] = ""
    nameservers: list[NameserverBody] | None = None
    enabled: bool = False
    groups: list[str] | None = None
    primary: bool = False
    domains: list[str] | None = None
    search_domains_enabled: bool = False


class ZoneBody(Body):
    answer = shapes.Zone
    name: str = ""
    domain: str = ""
    enabled: bool = True
    enable_search_domain: bool = False
    distribution_groups: list[str] | None = None


class RecordBody(Body):
    answer = shapes.Record
    name: str = ""
    type: str = ""
    content: str = ""
    ttl: int = 0


def nameservers_json(group: NameserverGroup) -> dict[str, Any]:
    return {
        "description": group.description,
        "domains": list(group.domains),
        "enabled": group.enabled,
        "groups": list(group.groups),
        "id": group.id,
        "name": group.name,
        "nameservers": [{"ip": server.ip, "ns_type": "udp", "port": server.port} for server in group.nameservers],
        "primary": group.primary,
        "search_domains_enabled": group.search_domains_enabled,
    }


def record_json(record: ZoneRecord) -> dict[str, Any]:
    return {
        "content": record.content,
        "id": record.id,
        "name": record.name,
        "ttl": record.ttl,
        "type": record.type,
    }


def zone_json(zone: Zone) -> dict[str, Any]:
    return {
        "distribution_groups": list(zone.distribution_groups),
        "domain": zone.domain,
        "enable_search_domain": zone.enable_search_domain,
        "enabled": zone.enabled,
        "id": zone.id,
        "name": zone.name,
        "records": [record_json(record) for record in zone.records],
    }


@router.get("/settings", response_model=shapes.DnsSettings)
async def get_settings(caller: Annotated[AuthenticatedUser, allowed("dns", "read")]) -> Response:
    return ApiResponse({"disabled_management_groups": list(caller.account.account.settings.disabled_management_groups)})


@router.put("/settings", response_model=shapes.DnsSettings)
async def put_settings(
    caller: Annotated[AuthenticatedUser, allowed("dns", "update")],
    context: InContext,
    body: Annotated[DnsSettingsBody, sent_as(DnsSettingsBody)],
) -> Response:
    if body.disabled_management_groups is None:
        raise BadRequest("disabled_management_groups is required")
    groups = [GroupId(id_) for id_ in body.disabled_management_groups]
    await set_disabled_groups(context.state, caller.account_id, groups)
    return ApiResponse({"disabled_management_groups": groups})


@router.get("/nameservers", response_model=list[shapes.NameserverGroup])
async def list_nameservers(caller: Annotated[AuthenticatedUser, allowed("nameservers", "read")]) -> Response:
    return ApiResponse([nameservers_json(group) for group in caller.account.dns.nameservers])


@router.post("/nameservers", response_model=shapes.NameserverGroup)
async def post_nameservers(
    caller: Annotated[AuthenticatedUser, allowed("nameservers", "create")],
    context: InContext,
    body: Annotated[NameserverGroupBody, sent_as(NameserverGroupBody)],
) -> Response:
    saved = await save_nameservers(context.state, caller.account_id, _nameservers("", body))
    return ApiResponse(nameservers_json(saved))


@router.get("/nameservers/{group_id}", response_model=shapes.NameserverGroup)
async def get_group(
    group_id: str, caller: Annotated[AuthenticatedUser, allowed("nameservers", "read")], context: InContext
) -> Response:
    return ApiResponse(nameservers_json(get_nameservers(context.state, caller.account_id, group_id)))


@router.put("/nameservers/{group_id}", response_model=shapes.NameserverGroup)
async def put_group(
    group_id: str,
    caller: Annotated[AuthenticatedUser, allowed("nameservers", "update")],
    context: InContext,
    body: Annotated[NameserverGroupBody, sent_as(NameserverGroupBody)],
) -> Response:
    saved = await save_nameservers(context.state, caller.account_id, _nameservers(group_id, body))
    return ApiResponse(nameservers_json(saved))


@router.delete("/nameservers/{group_id}", response_model=shapes.Nothing)
async def remove_group(
    group_id: str, caller: Annotated[AuthenticatedUser, allowed("nameservers", "delete")], context: InContext
) -> Response:
    await delete_nameservers(context.state, caller.account_id, group_id)
    return ApiResponse({})


@router.get("/zones", response_model=list[shapes.Zone])
async def list_zones(caller: Annotated[AuthenticatedUser, allowed("dns", "read")]) -> Response:
    return ApiResponse([zone_json(zone) for zone in caller.account.dns.zones])


@router.post("/zones", response_model=shapes.Zone)
async def post_zone(
    caller: Annotated[AuthenticatedUser, allowed("dns", "create")],
    context: InContext,
    body: Annotated[ZoneBody, sent_as(ZoneBody)],
) -> Response:
    return ApiResponse(zone_json(await save_zone(context.state, caller.account_id, _zone("", body))))


@router.get("/zones/{zone_id}", response_model=shapes.Zone)
async def get_one_zone(
    zone_id: str, caller: Annotated[AuthenticatedUser, allowed("dns", "read")], context: InContext
) -> Response:
    return ApiResponse(zone_json(get_zone(context.state, caller.account_id, zone_id)))


@router.put("/zones/{zone_id}", response_model=shapes.Zone)
async def put_zone(
    zone_id: str,
    caller: Annotated[AuthenticatedUser, allowed("dns", "update")],
    context: InContext,
    body: Annotated[ZoneBody, sent_as(ZoneBody)],
) -> Response:
    return ApiResponse(zone_json(await save_zone(context.state, caller.account_id, _zone(zone_id, body))))


@router.delete("/zones/{zone_id}", response_model=shapes.Nothing)
async def remove_zone(
    zone_id: str, caller: Annotated[AuthenticatedUser, allowed("dns", "delete")], context: InContext
) -> Response:
    await delete_zone(context.state, caller.account_id, zone_id)
    return ApiResponse({})


@router.get("/zones/{zone_id}/records", response_model=list[shapes.Record])
async def list_records(
    zone_id: str, caller: Annotated[AuthenticatedUser, allowed("dns", "read")], context: InContext
) -> Response:
    return ApiResponse([record_json(record) for record in get_zone(context.state, caller.account_id, zone_id).records])


@router.post("/zones/{zone_id}/records", response_model=shapes.Record)
async def post_record(
    zone_id: str,
    caller: Annotated[AuthenticatedUser, allowed("dns", "create")],
    context: InContext,
    body: Annotated[RecordBody, sent_as(RecordBody)],
) -> Response:
    return ApiResponse(record_json(await save_record(context.state, caller.account_id, zone_id, _record("", body))))


@router.get("/zones/{zone_id}/records/{record_id}", response_model=shapes.Record)
async def get_record(
    zone_id: str, record_id: str, caller: Annotated[AuthenticatedUser, allowed("dns", "read")], context: InContext
) -> Response:
    for record in get_zone(context.state, caller.account_id, zone_id).records:
        if record.id == record_id:
            return ApiResponse(record_json(record))
    raise NotFound(f"record {record_id} not found")


@router.put("/zones/{zone_id}/records/{record_id}", response_model=shapes.Record)
async def put_record(
    zone_id: str,
    record_id: str,
    caller: Annotated[AuthenticatedUser, allowed("dns", "update")],
    context: InContext,
    body: Annotated[RecordBody, sent_as(RecordBody)],
) -> Response:
    saved = await save_record(context.state, caller.account_id, zone_id, _record(record_id, body))
    return ApiResponse(record_json(saved))


@router.delete("/zones/{zone_id}/records/{record_id}", response_model=shapes.Nothing)
async def remove_record(
    zone_id: str, record_id: str, caller: Annotated[AuthenticatedUser, allowed("dns", "delete")], context: InContext
) -> Response:
    await delete_record(context.state, caller.account_id, zone_id, record_id)
    return ApiResponse({})


def _nameservers(id_: str, body: NameserverGroupBody) -> NameserverGroup:
    servers = body.nameservers or ()
    return NameserverGroup(
        id=id_,
        name=body.name,
        nameservers=tuple(Nameserver(server.ip, server.port) for server in servers),
        groups=tuple(GroupId(group_id) for group_id in body.groups or ()),
        domains=tuple(body.domains or ()),
        description=body.description,
        enabled=body.enabled,
        primary=body.primary,
        search_domains_enabled=body.search_domains_enabled,
    )


def _zone(id_: str, body: ZoneBody) -> Zone:
    return Zone(
        id=id_,
        name=body.name,
        domain=body.domain,
        distribution_groups=tuple(GroupId(group_id) for group_id in body.distribution_groups or ()),
        enabled=body.enabled,
        enable_search_domain=body.enable_search_domain,
    )


def _record(id_: str, body: RecordBody) -> ZoneRecord:
    return ZoneRecord(id=id_, name=body.name, type=body.type, content=body.content, ttl=body.ttl)
