"""Policies that services need: a cluster's proxies may reach the peers to which they forward.

They are computed in memory for network maps; they are not stored, and the API does not show them. Plugins add further
policies (access to a private service) by the hook `network_patches`.
"""

from collections.abc import Iterator
from typing import Final

from netbird_management.model.accounts import Policy, PolicyRule, PortRange, Resource, ResourceType
from netbird_management.model.ids import PolicyId
from netbird_management.model.services import Service, Target, TargetType
from netbird_management.model.snapshot import AccountSnapshot

_DEFAULT_PORTS: Final = {"https": 443, "tls": 443, "http": 80}
_RESOURCES: Final = {
    TargetType.PEER: ResourceType.PEER,
    TargetType.HOST: ResourceType.HOST,
    TargetType.DOMAIN: ResourceType.DOMAIN,
    TargetType.SUBNET: ResourceType.SUBNET,
}


def target_policies(service: Service, account: AccountSnapshot) -> Iterator[Policy]:
    """One policy for each enabled target and each proxy peer of the service's cluster. A disabled service needs none.

    A target without a port gets its protocol's default port; a target whose protocol has no default port gets no
    policy, so it is not reachable. A `cluster` target is dialed from the proxy's own network and needs none either.
    """
    if not service.enabled:
        return
    for proxy in account.proxy_peers(service.proxy_cluster):
        for target in service.targets:
            port = target.port or _DEFAULT_PORTS.get(target.protocol, 0)
            if target.enabled and port and target.target_type in _RESOURCES:
                yield _policy(service, target, Resource(proxy.id, ResourceType.PEER), port)


def _policy(service: Service, target: Target, proxy: Resource, port: int) -> Policy:
    id_ = f"proxy-access-{service.id}-{proxy.id}-{target.path or ''}"
    rule = PolicyRule(
        id=id_,
        name="Allow access to " + service.name,
        source_resource=proxy,
        destination_resource=Resource(target.target_id, _RESOURCES[target.target_type]),
        protocol="udp" if service.mode == "udp" else "tcp",
        port_ranges=(PortRange(port, port),),
    )
    return Policy(id=PolicyId(id_), name="Proxy Access to " + service.name, rules=(rule,))
