"""Proxy clusters, and the domains available to services."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from starlette.background import BackgroundTask
from starlette.responses import Response

from netbird_management.model.accounts import CustomDomain
from netbird_management.model.errors import InvalidArgument
from netbird_management.model.ids import AccountId
from netbird_management.model.services import InboundListener
from netbird_management.operations.custom_domains import (
    create_domain,
    delete_domain,
    get_domain,
    proof_of,
    validate_domain,
)
from netbird_management.operations.proxies import Cluster, clusters_of, delete_cluster
from netbird_management.operations.statuses import inbound_listeners
from netbird_management.rest import shapes
from netbird_management.rest.auth import AuthenticatedUser, allowed
from netbird_management.rest.bodies import Body
from netbird_management.rest.context import InContext
from netbird_management.rest.service_json import listener_json
from netbird_management.rest.wire import ApiResponse, sent_as

router = APIRouter(tags=["reverse-proxies"])


class DomainBody(Body):
    answer = shapes.Domain
    domain: str = ""
    target_cluster: str = ""


def _reported(**capabilities: bool | None) -> dict[str, bool]:
    return {name: value for name, value in capabilities.items() if value is not None}


def cluster_json(cluster: Cluster, listeners: Sequence[InboundListener] = ()) -> dict[str, Any]:
    """`listeners` are the addresses of its proxies inside the account's tunnel."""
    shown = {"inbound_listeners": [listener_json(listener) for listener in listeners]} if listeners else {}
    return {
        **shown,
        "address": cluster.address,
        "connected_proxies": cluster.connected_proxies,
        "id": cluster.id,
        "online": cluster.online,
        "type": cluster.type,
        **_reported(
            private=cluster.private,
            require_subdomain=cluster.require_subdomain,
            supports_crowdsec=cluster.supports_crowdsec,
            supports_custom_ports=cluster.supports_custom_ports,
        ),
    }


def _free_domain_json(cluster: Cluster) -> dict[str, Any]:
    return {
        "domain": cluster.address,
        "id": "",
        "type": "free",
        "validated": True,
        **_reported(
            require_subdomain=cluster.require_subdomain,
            supports_crowdsec=cluster.supports_crowdsec,
            supports_custom_ports=cluster.supports_custom_ports,
            supports_private=cluster.private,
        ),
    }


@router.get("/reverse-proxies/clusters", response_model=list[shapes.Cluster])
async def list_clusters(
    caller: Annotated[AuthenticatedUser, allowed("services", "read")], context: InContext
) -> Response:
    listeners = await inbound_listeners(context.state, caller.account_id)
    clusters = await clusters_of(context.state, caller.account_id)
    return ApiResponse([cluster_json(cluster, listeners.get(cluster.address, ())) for cluster in clusters])


@router.delete("/reverse-proxies/clusters/{address}", response_model=shapes.Nothing)
async def remove_cluster(
    address: str, caller: Annotated[AuthenticatedUser, allowed("services", "delete")], context: InContext
) -> Response:
    await delete_cluster(context.state, AccountId(caller.account_id), address)
    return ApiResponse({})


@router.get("/reverse-proxies/domains", response_model=list[shapes.Domain])
async def list_domains(
    caller: Annotated[AuthenticatedUser, allowed("services", "read")], context: InContext
) -> Response:
    clusters = await clusters_of(context.state, caller.account_id)
    by_address = {cluster.address: cluster for cluster in clusters}
    free = [_free_domain_json(cluster) for cluster in clusters if cluster.online]
    custom = [
        _custom_domain_json(domain, by_address.get(domain.target_cluster)) for domain in caller.account.custom_domains
    ]
    return ApiResponse([*free, *custom])


@router.post("/reverse-proxies/domains", response_model=shapes.Domain)
async def post_domain(
    caller: Annotated[AuthenticatedUser, allowed("services", "create")],
    context: InContext,
    body: Annotated[DomainBody, sent_as(DomainBody)],
) -> Response:
    if not body.target_cluster:
        raise InvalidArgument("target_cluster is required")
    domain = await create_domain(
        context.state,
        context.resolver,
        caller.account_id,
        domain=body.domain,
        target_cluster=body.target_cluster,
        refused_domains=context.refused_domains,
    )
    clusters = {cluster.address: cluster for cluster in await clusters_of(context.state, caller.account_id)}
    return ApiResponse(_custom_domain_json(domain, clusters.get(domain.target_cluster)))


@router.get(
    "/reverse-proxies/domains/{domain_id}/validate",
    status_code=202,
    response_class=Response,
    response_description="Validation started",
)
async def validate(
    domain_id: str, caller: Annotated[AuthenticatedUser, allowed("services", "create")], context: InContext
) -> Response:
    """Starts a DNS lookup and responds at once; the domain's `validated` shows the result."""
    get_domain(context.state, caller.account_id, domain_id)
    later = BackgroundTask(validate_domain, context.state, context.resolver, caller.account_id, domain_id)
    return Response(status_code=202, background=later)


@router.delete("/reverse-proxies/domains/{domain_id}", status_code=204, response_class=Response)
async def remove_domain(
    domain_id: str, caller: Annotated[AuthenticatedUser, allowed("services", "delete")], context: InContext
) -> Response:
    await delete_domain(context.state, caller.account_id, domain_id)
    return Response(status_code=204)


def _custom_domain_json(custom: CustomDomain, cluster: Cluster | None) -> dict[str, Any]:
    proof = proof_of(custom.account_id, custom.domain)
    shown: dict[str, Any] = {
        "domain": custom.domain,
        "id": custom.id,
        "target_cluster": custom.target_cluster,
        "type": "custom",
        "validated": custom.validated,
        "validation_record": {"name": proof.name, "type": "TXT", "value": proof.value},
    }
    if cluster is None:
        return shown
    return shown | _reported(
        supports_crowdsec=cluster.supports_crowdsec,
        supports_custom_ports=cluster.supports_custom_ports,
        supports_private=cluster.private,
    )
