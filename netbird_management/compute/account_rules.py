"""What an account's policies and services come to: who may talk to whom, what is behind whom, and under which names.

It is kept from one snapshot of the account to the next, and a change of services costs what these services add. Many
services share the same rule (the same groups may reach the same proxies); it is stored and resolved once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from netbird_management.compute.differences import network_differs
from netbird_management.compute.routes import Routed, routed
from netbird_management.model.accounts import Peer, Policy, PolicyRule, Resource, ResourceType
from netbird_management.model.admission import admitted
from netbird_management.model.ids import GroupId, PeerId, ServiceId
from netbird_management.model.services import Service
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.steps import DnsRecord, NetworkPatch

_NOBODY: Final = ServiceId("")
"""Stands for the account's own policies, where a service would be named."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A rule with the peers on its two sides."""

    rule: PolicyRule
    sources: Mapping[PeerId, Peer]
    destinations: Mapping[PeerId, Peer]


class AccountRules:
    """Of one snapshot at a time, which `follow` changes."""

    def __init__(
        self,
        snapshot: AccountSnapshot,
        patch: Callable[[Service, AccountSnapshot], NetworkPatch],
        before: "AccountRules | None" = None,
    ) -> None:
        """`patch` says what a service adds; what it added before is taken from `before` where nothing else differs."""
        self.snapshot = snapshot
        self._patch = patch
        self._patches: dict[ServiceId, tuple[Service, NetworkPatch]] = {}
        self._alike: dict[tuple[object, ...], dict[tuple[ServiceId, str], Resolved]] = {}
        self._routed: dict[ServiceId, list[Routed]] = {}
        self._add(_NOBODY, _resolved(_ordered(snapshot.policies.values()), snapshot))
        kept = before._patches if before is not None and not network_differs(before.snapshot, snapshot) else {}
        for service in sorted(snapshot.services.values(), key=lambda service: service.id):
            self._put(service, snapshot, kept.get(service.id))

    def follow(self, snapshot: AccountSnapshot) -> bool:
        """Becomes those of a later snapshot. False if it cannot, as too much is different: make new ones then.

        Raises what `patch` raises, and is still those of the one before.
        """
        before = self.snapshot
        if snapshot is before:
            return True
        touched = snapshot.touched_since(before.generation) if snapshot.generation != before.generation else None
        if touched is None or network_differs(before, snapshot):
            return False
        for service_id in sorted(touched):
            service = snapshot.services.get(service_id)
            if service is not None:
                self._put(service, snapshot, self._patches.get(service_id))
            elif service_id in self._patches:
                self._remove(service_id)
        self.snapshot = snapshot
        return True

    def rules(self) -> Iterator[Resolved]:
        """Between peers; of those that say the same, one."""
        return (next(iter(alike.values())) for alike in self._alike.values())

    def routed(self) -> Iterator[Routed]:
        """Towards resources."""
        return (one for found in self._routed.values() for one in found)

    def records(self) -> Iterator[DnsRecord]:
        """The names of services."""
        return (record for _, patch in self._patches.values() for record in patch.records)

    def _put(self, service: Service, snapshot: AccountSnapshot, known: tuple[Service, NetworkPatch] | None) -> None:
        same = known is not None and known[0] == service
        patch = known[1] if known is not None and same else self._patch(service, snapshot)
        if (mine := self._patches.get(service.id)) is not None and mine[1] == patch:
            self._patches[service.id] = service, patch
            return
        found = _resolved(patch.policies, snapshot)
        if mine is not None:
            self._remove(service.id)
        self._patches[service.id] = service, patch
        self._add(service.id, found)

    def _add(self, owner: ServiceId, found: list[tuple[Resolved, list[Routed]]]) -> None:
        for resolved, behind in found:
            self._alike.setdefault(_says(resolved.rule), {})[owner, resolved.rule.id] = resolved
            if behind:
                self._routed.setdefault(owner, []).extend(behind)

    def _remove(self, owner: ServiceId) -> None:
        for policy in self._patches.pop(owner)[1].policies:
            for rule in policy.rules:
                alike = self._alike.get(_says(rule), {})
                alike.pop((owner, rule.id), None)
                if not alike:
                    self._alike.pop(_says(rule), None)
        self._routed.pop(owner, None)


def _ordered(policies: Iterable[Policy]) -> list[Policy]:
    return sorted(policies, key=lambda policy: policy.id)


def _resolved(policies: Iterable[Policy], snapshot: AccountSnapshot) -> list[tuple[Resolved, list[Routed]]]:
    rules = (rule for policy in policies if policy.enabled for rule in policy.rules if rule.enabled)
    found = [_resolve(rule, snapshot) for rule in rules]
    return [(one, list(routed(one.rule, one.sources, snapshot))) for one in found]


def _says(rule: PolicyRule) -> tuple[object, ...]:
    """All of a rule that a map is made of."""
    return (
        rule.sources,
        rule.source_resource,
        rule.destinations,
        rule.destination_resource,
        rule.bidirectional,
        rule.protocol,
        rule.action,
        rule.ports,
        rule.port_ranges,
    )


def _resolve(rule: PolicyRule, account: AccountSnapshot) -> Resolved:
    return Resolved(
        rule,
        _side(rule.sources, rule.source_resource, account),
        _side(rule.destinations, rule.destination_resource, account),
    )


def _side(groups: tuple[GroupId, ...], resource: Resource | None, account: AccountSnapshot) -> Mapping[PeerId, Peer]:
    """The peers on one side of a rule. A resource stands instead of groups; a peer that is gone, and one whose owner
    takes no part, is left out."""
    if resource is None:
        members = account.members(groups)
    else:
        members = frozenset((PeerId(resource.id),) if resource.type is ResourceType.PEER else ())
    present = (peer for id_ in sorted(members) if (peer := account.peers.get(id_)) is not None)
    return {peer.id: peer for peer in present if admitted(peer, account)}
