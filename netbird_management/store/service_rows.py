"""Conversion between rows of the services' table and models."""

from dataclasses import asdict
from typing import Any

from netbird_management.model.ids import AccountId, GroupId, ServiceId
from netbird_management.model.services import (
    AccessRestrictions,
    AuthConfig,
    Service,
    ServiceMeta,
    Target,
)
from netbird_management.store.models import ServiceRow
from netbird_management.store.stored import decoded


def service_of(row: ServiceRow) -> Service:
    """The model of a row."""
    return Service(
        id=ServiceId(row.id),
        account_id=AccountId(row.account_id),
        name=row.name,
        domain=row.domain,
        proxy_cluster=row.proxy_cluster,
        meta=ServiceMeta(created_at=row.created_at),
        targets=decoded(tuple[Target, ...], row.targets),
        enabled=row.enabled,
        terminated=row.terminated,
        mode=row.mode,
        listen_port=row.listen_port,
        port_auto_assigned=row.port_auto_assigned,
        pass_host_header=row.pass_host_header,
        rewrite_redirects=row.rewrite_redirects,
        auth=decoded(AuthConfig, row.auth),
        access_restrictions=decoded(AccessRestrictions, row.restrictions),
        private=row.private,
        access_groups=tuple(GroupId(id_) for id_ in row.access_groups),
        session_public_key=row.session_public_key,
        own_cluster=row.own_cluster,
        source=row.source,
        source_peer=row.source_peer,
        extensions=row.extensions,
    )


def columns(service: Service) -> dict[str, Any]:
    """The columns that a save writes: all except the ids, the session key pair and the proxies' reports."""
    return {
        "name": service.name,
        "domain": service.domain,
        "proxy_cluster": service.proxy_cluster,
        "targets": [asdict(target) for target in service.targets],
        "enabled": service.enabled,
        "terminated": service.terminated,
        "mode": service.mode,
        "listen_port": service.listen_port,
        "port_auto_assigned": service.port_auto_assigned,
        "pass_host_header": service.pass_host_header,
        "rewrite_redirects": service.rewrite_redirects,
        "auth": asdict(service.auth),
        "restrictions": asdict(service.access_restrictions),
        "private": service.private,
        "access_groups": list(service.access_groups),
        "own_cluster": service.own_cluster,
        "source": service.source,
        "source_peer": service.source_peer,
        "extensions": dict(service.extensions),
    }
