"""Clusters of proxies, and the domains that services can live under."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from netbird_management.ids import AccountId
from netbird_management.rest.auth import AdminCaller
from netbird_management.rest.context import InContext
from netbird_management.rest.json import ApiResponse
from netbird_management.services.proxies import Cluster, clusters_of, delete_cluster

router = APIRouter()


def _known(**facts: bool | None) -> dict[str, bool]:
    return {name: fact for name, fact in facts.items() if fact is not None}


def cluster_json(cluster: Cluster) -> dict[str, Any]:
    return {
        "address": cluster.address,
        "connected_proxies": cluster.connected_proxies,
        "id": cluster.id,
        "online": cluster.online,
        "type": cluster.type,
        **_known(
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
        **_known(
            require_subdomain=cluster.require_subdomain,
            supports_crowdsec=cluster.supports_crowdsec,
            supports_custom_ports=cluster.supports_custom_ports,
            supports_private=cluster.private,
        ),
    }


@router.get("/reverse-proxies/clusters")
async def list_clusters(who: AdminCaller, context: InContext) -> Response:
    return ApiResponse([cluster_json(cluster) for cluster in await clusters_of(context.state, who.account_id)])


@router.delete("/reverse-proxies/clusters/{address}")
async def remove_cluster(address: str, who: AdminCaller, context: InContext) -> Response:
    await delete_cluster(context.state, AccountId(who.account_id), address)
    return ApiResponse({})


@router.get("/reverse-proxies/domains")
async def list_domains(who: AdminCaller, context: InContext) -> Response:
    clusters = await clusters_of(context.state, who.account_id)
    by_address = {cluster.address: cluster for cluster in clusters}
    answer = [_free_domain_json(cluster) for cluster in clusters if cluster.online]
    for custom in who.account.custom_domains:
        shown: dict[str, Any] = {
            "domain": custom.domain,
            "id": custom.id,
            "target_cluster": custom.target_cluster,
            "type": "custom",
            "validated": custom.validated,
        }
        cluster = by_address.get(custom.target_cluster)
        if cluster is not None:
            shown |= _known(
                supports_crowdsec=cluster.supports_crowdsec,
                supports_custom_ports=cluster.supports_custom_ports,
                supports_private=cluster.private,
            )
        answer.append(shown)
    return ApiResponse(answer)
