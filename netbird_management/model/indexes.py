"""What is asked about an account's services without looking at each of them, and which names belong to which account.

A change of one service must cost the same with ten of them and with ten thousand, so nothing here is made anew: indexes
of a snapshot share all that did not change with the ones before.
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
    """An account's services by what they name. Immutable."""

    __slots__ = ("_found",)

    def __init__(self, found: Map[_Key, Map[ServiceId, Service]]) -> None:
        self._found = found

    @classmethod
    def of(cls, services: Iterable[Service]) -> "ServiceIndex":
        found: dict[_Key, dict[ServiceId, Service]] = {}
        for service in services:
            for key in _keys(service):
                found.setdefault(key, {})[service.id] = service
        return cls(Map({key: Map(held) for key, held in found.items()}))

    def replaced(self, old: Iterable[Service], new: Iterable[Service]) -> "ServiceIndex":
        """Without the old ones, which are here, and with the new ones."""
        found = self._found
        for service in old:
            for key in _keys(service):
                left = found[key].delete(service.id)
                found = found.set(key, left) if left else found.delete(key)
        for service in new:
            for key in _keys(service):
                found = found.set(key, found.get(key, _NONE).set(service.id, service))
        return ServiceIndex(found)

    def by_domain(self, domain: str) -> Service | None:
        """The service of a folded domain."""
        return next(iter(self._found.get(("domain", domain), _NONE).values()), None)

    def of_cluster(self, cluster: str) -> Mapping[ServiceId, Service]:
        return self._found.get(("cluster", cluster), _NONE)

    def on_port(self, cluster: str, port: int) -> Mapping[ServiceId, Service]:
        """Those that listen on a port of their own; `http` services do not."""
        return self._found.get(("port", cluster, str(port)), _NONE)

    def targeting(self, peer_id: PeerId) -> Mapping[ServiceId, Service]:
        """Those with a target, enabled or not, that is this peer."""
        return self._found.get(("peer", peer_id), _NONE)

    def targeting_resource(self, resource_id: str) -> Mapping[ServiceId, Service]:
        """Those with a target, enabled or not, that is this resource of a network."""
        return self._found.get(("resource", resource_id), _NONE)

    def naming(self, group_id: GroupId) -> Mapping[ServiceId, Service]:
        """Those whose members, or whose sign-in's, the group is named for."""
        return self._found.get(("group", group_id), _NONE)


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
    """Which accounts hold a proved domain, or one below it, and how many each. Belongs to one event loop."""

    def __init__(self) -> None:
        self._held: dict[str, dict[AccountId, int]] = {}
        self._below: dict[str, dict[AccountId, int]] = {}

    def add(self, account_id: AccountId, domain: str) -> None:
        self._count(self._held, domain, account_id, 1)
        for name in upwards(domain):
            self._count(self._below, name, account_id, 1)

    def remove(self, account_id: AccountId, domain: str) -> None:
        self._count(self._held, domain, account_id, -1)
        for name in upwards(domain):
            self._count(self._below, name, account_id, -1)

    def others_have(self, domain: str, account_id: AccountId) -> bool:
        """Whether another account has this very domain."""
        return any(other != account_id for other in self._held.get(domain, ()))

    def others_hold(self, domain: str, account_id: AccountId) -> bool:
        """Whether another account has this very domain, one above it, or one below it."""
        if any(other != account_id for other in self._below.get(domain, ())):
            return True
        return any(other != account_id for name in upwards(domain) for other in self._held.get(name, ()))

    @staticmethod
    def _count(where: dict[str, dict[AccountId, int]], name: str, account_id: AccountId, by: int) -> None:
        counts = where.setdefault(name, {})
        counts[account_id] = counts.get(account_id, 0) + by
        if not counts[account_id]:
            del counts[account_id]
            if not counts:
                del where[name]
