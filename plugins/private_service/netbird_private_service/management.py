"""Management's half: validates private services, chooses their proxies, and gives members access and DNS records."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

from netbird_management import (
    ALLOW,
    AccountSnapshot,
    Capabilities,
    Claim,
    Decision,
    Deny,
    DnsRecord,
    Group,
    GroupId,
    Login,
    Management,
    NetworkPatch,
    Peer,
    PeerGate,
    PluginInfo,
    Policy,
    PolicyId,
    PolicyRule,
    PortRange,
    Resource,
    ResourceType,
    Service,
    SessionGate,
    Violation,
    WithholdPredicate,
    always,
    hookimpl,
)
from netbird_private_service.settings import FIELD, PrivateServiceSettings
from netbird_wire.proxy_service_pb2 import ProxyMapping

if TYPE_CHECKING:
    from fastapi import APIRouter

LISTENER_PORTS = (80, 443)
"""The ports on which every proxy listens in the tunnel. The policy opens them; the peer gate admits by service."""


class PrivateService:
    """Implements private services on management, whose members are the peers in the service's access groups."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-private-service"),
            summary="private services: over the account's tunnel only, by members of the service's access groups",
            claims=(Claim(FIELD, guards=always),),
        )

    @hookimpl
    def validate_service(self, service: Service, account: AccountSnapshot) -> list[Violation]:
        if not service.private:
            return []
        violations: list[Violation] = []
        if service.mode not in ("", "http"):
            violations.append(Violation(f"a private service needs mode http, not {service.mode}", "mode"))
        if not service.access_groups:
            violations.append(Violation("private services require at least one access group", "access_groups"))
        bearer = service.auth.bearer_auth
        if bearer is not None and bearer.enabled:
            violations.append(
                Violation(
                    "private services cannot enable bearer auth (sso): "
                    "netbird-only access and sso are mutually exclusive",
                    "auth.bearer_auth",
                )
            )
        return violations

    @hookimpl
    def build_mapping(self, service: Service, mapping: ProxyMapping) -> None:
        PrivateServiceSettings(private=service.private).to_wire(mapping)

    @hookimpl
    def withhold_mapping(self, service: Service) -> WithholdPredicate | None:
        return _understands if service.private else None

    @hookimpl
    def peer_gate(self, service: Service) -> PeerGate | None:
        """Admits members by the *peer's* groups. A service without access groups admits no peer."""
        if not service.private:
            return None
        access_groups = frozenset(service.access_groups)

        def gate(*, peer: Peer, groups: tuple[Group, ...], account: AccountSnapshot) -> Decision:
            if any(group.id in access_groups for group in groups):
                return ALLOW
            required = tuple(account.groups[id_] for id_ in service.access_groups if id_ in account.groups)
            return Deny("not_in_group", required_groups=required)

        return gate

    @hookimpl
    def session_gate(self, service: Service) -> SessionGate | None:
        """Denies sessions on private services: neither an old credential, nor the token that a proxy receives with its
        answer about a peer, may bypass the tunnel."""
        return _tunnel_only if service.private else None

    @hookimpl
    def routes(self, management: Management) -> APIRouter:
        from netbird_private_service.members import (
            members_router,
        )  # imported here, because FastAPI is slow to import and not all commands need it

        return members_router(management)

    @hookimpl
    def network_patches(self, service: Service, account: AccountSnapshot) -> NetworkPatch | None:
        if not service.private or not service.enabled:
            return None
        groups = tuple(id_ for id_ in service.access_groups if id_ in account.groups)
        proxies = account.proxy_peers(service.proxy_cluster)
        if not groups or not proxies:
            return None
        policies = tuple(_policy(service, proxy, groups) for proxy in proxies)
        return NetworkPatch(policies=policies, records=tuple(_records(service, account, groups)))


async def _tunnel_only(*, login: Login, account: AccountSnapshot) -> Decision:
    return Deny("tunnel_required")


def _understands(capabilities: Capabilities) -> Decision:
    if capabilities.supports_private_service is True:
        return ALLOW
    return Deny("the proxy does not serve private services: its plugin private_service is not enabled")


def _policy(service: Service, proxy: Peer, groups: tuple[GroupId, ...]) -> Policy:
    id_ = f"private-access-{service.id}-{proxy.id}"
    rule = PolicyRule(
        id=id_,
        name="Allow access groups to reach " + service.name,
        sources=groups,
        destination_resource=Resource(proxy.id, ResourceType.PEER),
        protocol="tcp",
        port_ranges=tuple(PortRange(port, port) for port in LISTENER_PORTS),
    )
    return Policy(id=PolicyId(id_), name="Private Access to " + service.name, rules=(rule,))


def _records(service: Service, account: AccountSnapshot, groups: tuple[GroupId, ...]) -> Iterator[DnsRecord]:
    """Yield an address record for each connected proxy of the cluster."""
    apex = _apex(service, account)
    if apex is None:
        return
    for proxy in account.proxy_peers(service.proxy_cluster):
        if proxy.connected:
            yield DnsRecord(groups=frozenset(groups), zone=apex, name=service.domain, address=str(proxy.ip))


def _apex(service: Service, account: AccountSnapshot) -> str | None:
    """Return the zone of a service's records: the cluster's domain if it covers the service's domain, else the longest
    custom domain that does. A custom domain must be validated, since records would divert members from its real owner.
    """
    if service.domain == service.proxy_cluster or service.domain.endswith("." + service.proxy_cluster):
        return service.proxy_cluster
    custom = account.custom_domain_over(service.domain)
    if custom is None or not custom.validated or custom.target_cluster != service.proxy_cluster:
        return None
    return custom.domain
