"""Allows the members of a private service to ping its proxies."""

from __future__ import annotations

from netbird_management import (
    AccountSnapshot,
    NetworkPatch,
    PluginInfo,
    Policy,
    PolicyId,
    PolicyRule,
    Resource,
    ResourceType,
    Service,
    hookimpl,
)


class Pings:
    """Adds a policy for each proxy. The policy is computed from the service and not stored."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="members of a private service may ping its proxies")

    @hookimpl
    def network_patches(self, service: Service, account: AccountSnapshot) -> NetworkPatch | None:
        groups = tuple(id_ for id_ in service.access_groups if id_ in account.groups)
        if not service.private or not groups:
            return None
        policies = []
        for proxy in account.proxy_peers(service.proxy_cluster):
            id_ = f"ping-{service.id}-{proxy.id}"
            there = Resource(proxy.id, ResourceType.PEER)
            rule = PolicyRule(id_, "ping", sources=groups, destination_resource=there, protocol="icmp")
            policies.append(Policy(PolicyId(id_), "Ping of " + service.name, rules=(rule,)))
        return NetworkPatch(policies=tuple(policies))
