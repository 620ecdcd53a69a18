"""Indexes of an account's services, and of the domains that accounts own.

A change of one service must cost the same among ten services and among ten thousand. The index of a new snapshot
therefore shares every unchanged part with the index of the snapshot before it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from immutables import Map

from netbird_management.model.domains import upwards
from netbird_management.model.ids import AccountId, GroupId, PeerId, ServiceId
from netbird_management.model.services import RESOURCES, Service, TargetType

_Key = tuple[str, ...]
_NONE: Final[Map[ServiceId, Service]] = Map()


class ServiceIndex:
    """An account's services by domain, cluster, port, target and group. Immutable."""

    __slots__ = ("_services",)

    def __init__(self, services: Map[_Key, Map[ServiceId, Service]]) -> None:
        self._services = services

    @classmethod
    def of(cls, services: Iterable[Service]) -> "ServiceIndex":
        by_key: dict[_Key, dict[ServiceId, Service]] = {}
        for service in services:
            for key in _keys(service):
                by_key.setdefault(key, {})[service.id] = service
        return cls(Map({key: Map(of_key) for key, of_key in by_key.items()}))

    def replaced(self, old: Iterable[Service], new: Iterable[Service]) -> "ServiceIndex":
        """A new index without the services in `old`, all of which this index contains, and with those in `new`."""
        by_key = self._services
        for service in old:
            for key in _keys(service):
                left = by_key[key].delete(service.id)
                by_key = by_key.set(key, left) if left else by_key.delete(key)
        for service in new:
            for key in _keys(service):
                by_key = by_key.set(key, by_key.get(key, _NONE).set(service.id, service))
        return ServiceIndex(by_key)

    def by_domain(self, domain: str) -> Service | None:
        """The service of a folded domain."""
        return next(iter(self._services.get(("domain", domain), _NONE).values()), None)

    def of_cluster(self, cluster: str) -> Mapping[ServiceId, Service]:
        return self._services.get(("cluster", cluster), _NONE)

    def on_port(self, cluster: str, port: int) -> Mapping[ServiceId, Service]:
        """The services that listen on this port of a cluster; `http` services have no port of their own."""
        return self._services.get(("port", cluster, str(port)), _NONE)

    def targeting(self, peer_id: PeerId) -> Mapping[ServiceId, Service]:
        """The services with this peer as a target, enabled or not."""
        return self._services.get(("peer", peer_id), _NONE)

    def targeting_resource(self, resource_id: str) -> Mapping[ServiceId, Service]:
        """The services with this network resource as a target, enabled or not."""
        return self._services.get(("resource", resource_id), _NONE)

    def naming(self, group_id: GroupId) -> Mapping[ServiceId, Service]:
        """The services that list the group in `access_groups` or in the groups of single sign-on."""
        return self._services.get(("group", group_id), _NONE)


def _keys(service: Service) -> Iterator[_Key]:
    yield "domain", service.domain
    yield "cluster", service.proxy_cluster
    if service.listen_port:
        yield "port", service.proxy_cluster, str(service.listen_port)
    for peer_id in {target.target_id for target in service.targets if target.target_type is TargetType.PEER}:
        yield "peer", peer_id
    for resource_id in {target.target_id for target in service.targets if target.target_type in RESOURCES}:
        yield "resource", resource_id
    bearer = service.auth.bearer_auth
    for group_id in {
        *service.access_groups,
        *(bearer.distribution_groups if bearer is not None and bearer.enabled else ()),
    }:
        yield "group", group_id


class Names:
    """Proved domains with the accounts that own them. Belongs to one event loop."""

    def __init__(self) -> None:
        # The number of an account's proved domains: exactly this one, and this one or below it.
        self._exact: dict[str, dict[AccountId, int]] = {}
        self._below: dict[str, dict[AccountId, int]] = {}

    def add(self, account_id: AccountId, domain: str) -> None:
        self._count(self._exact, domain, account_id, 1)
        for name in upwards(domain):
            self._count(self._below, name, account_id, 1)

    def remove(self, account_id: AccountId, domain: str) -> None:
        self._count(self._exact, domain, account_id, -1)
        for name in upwards(domain):
            self._count(self._below, name, account_id, -1)

    def others_have(self, domain: str, account_id: AccountId) -> bool:
        """True if another account owns exactly this domain."""
        return any(other != account_id for other in self._exact.get(domain, ()))

    def others_hold(self, domain: str, account_id: AccountId) -> bool:
        """True if another account owns this domain, one of its parents, or one of its subdomains."""
        if any(other != account_id for other in self._below.get(domain, ())):
            return True
        return any(other != account_id for name in upwards(domain) for other in self._exact.get(name, ()))

    @staticmethod
    def _count(where: dict[str, dict[AccountId, int]], name: str, account_id: AccountId, by: int) -> None:
        counts = where.setdefault(name, {})
        counts[account_id] = counts.get(account_id, 0) + by
        if not counts[account_id]:
            del counts[account_id]
            if not counts:
                del where[name]
