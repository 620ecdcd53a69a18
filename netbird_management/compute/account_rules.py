"""Resolved rules of an account: policies and service patches as rules between peers, routed rules and DNS records.

The rules are kept from one snapshot of the account to the next; a change of services recomputes only these services.
Many services share the same rule (the same groups may reach the same proxies); it is stored and resolved once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from netbird_management.compute.agent_versions import forwarder_port
from netbird_management.compute.differences import network_differs
from netbird_management.compute.routes import Routed, routed
from netbird_management.model.accounts import Peer, Policy, PolicyRule, Resource, ResourceType
from netbird_management.model.admission import admitted, owner_refusal
from netbird_management.model.ids import GroupId, PeerId, ServiceId
from netbird_management.model.services import Service
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.steps import DnsRecord, NetworkPatch

# Owner of the rules from the account's own policies, in place of a service.
_NO_SERVICE: Final = ServiceId("")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A rule with the peers on both sides whose owners are admitted. Peers whose login has expired are among them, as
    maps list them as offline."""

    rule: PolicyRule
    sources: Mapping[PeerId, Peer]
    destinations: Mapping[PeerId, Peer]


class AccountRules:
    """Resolved rules of one snapshot; `follow` moves them to a later snapshot."""

    def __init__(
        self,
        snapshot: AccountSnapshot,
        patch: Callable[[Service, AccountSnapshot], NetworkPatch],
        before: "AccountRules | None" = None,
    ) -> None:
        """`patch` computes the patch of a service. Patches of unchanged services are reused from `before` if nothing
        but services differs."""
        self.snapshot = snapshot
        self.forwarder_port = forwarder_port(snapshot.peers.values())
        self._patch = patch
        self._patches: dict[ServiceId, tuple[Service, NetworkPatch]] = {}
        self._alike: dict[tuple[object, ...], dict[tuple[ServiceId, str], Resolved]] = {}
        self._routed: dict[ServiceId, list[Routed]] = {}
        self._add(_NO_SERVICE, _resolved(_ordered(snapshot.policies.values()), snapshot))
        kept = before._patches if before is not None and not network_differs(before.snapshot, snapshot) else {}
        for service in sorted(snapshot.services.values(), key=lambda service: service.id):
            self._replace(service, snapshot, kept.get(service.id))

    def follow(self, snapshot: AccountSnapshot) -> bool:
        """Moves the rules to a later snapshot. Returns False if more than services differs; the caller then makes new
        rules.

        Raises the exceptions of `patch`; the rules then still belong to the previous snapshot.
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
                self._replace(service, snapshot, self._patches.get(service_id))
            elif service_id in self._patches:
                self._remove(service_id)
        self.snapshot = snapshot
        return True

    def rules(self) -> Iterator[Resolved]:
        """Rules between peers; equal rules appear once."""
        return (next(iter(alike.values())) for alike in self._alike.values())

    def routed(self) -> Iterator[Routed]:
        """Rules towards network resources."""
        return (rule for rules in self._routed.values() for rule in rules)

    def records(self) -> Iterator[DnsRecord]:
        """DNS records of services."""
        return (record for _, patch in self._patches.values() for record in patch.records)

    def _replace(
        self, service: Service, snapshot: AccountSnapshot, computed: tuple[Service, NetworkPatch] | None
    ) -> None:
        same = computed is not None and computed[0] == service
        patch = computed[1] if computed is not None and same else self._patch(service, snapshot)
        if (current := self._patches.get(service.id)) is not None and current[1] == patch:
            self._patches[service.id] = service, patch
            return
        rules = _resolved(patch.policies, snapshot)
        if current is not None:
            self._remove(service.id)
        self._patches[service.id] = service, patch
        self._add(service.id, rules)

    def _add(self, owner: ServiceId, rules: list[tuple[Resolved, list[Routed]]]) -> None:
        for resolved, towards_resources in rules:
            self._alike.setdefault(_content(resolved.rule), {})[owner, resolved.rule.id] = resolved
            if towards_resources:
                self._routed.setdefault(owner, []).extend(towards_resources)

    def _remove(self, owner: ServiceId) -> None:
        for policy in self._patches.pop(owner)[1].policies:
            for rule in policy.rules:
                alike = self._alike.get(_content(rule), {})
                alike.pop((owner, rule.id), None)
                if not alike:
                    self._alike.pop(_content(rule), None)
        self._routed.pop(owner, None)


def _ordered(policies: Iterable[Policy]) -> list[Policy]:
    return sorted(policies, key=lambda policy: policy.id)


def _resolved(policies: Iterable[Policy], snapshot: AccountSnapshot) -> list[tuple[Resolved, list[Routed]]]:
    rules = (rule for policy in policies if policy.enabled for rule in policy.rules if rule.enabled)
    resolved = (_resolve(rule, snapshot) for rule in rules)
    return [(rule, list(routed(rule.rule, _live(rule.sources, snapshot), snapshot))) for rule in resolved]


def _live(peers: Mapping[PeerId, Peer], snapshot: AccountSnapshot) -> Mapping[PeerId, Peer]:
    return {id_: peer for id_, peer in peers.items() if admitted(peer, snapshot)}


def _content(rule: PolicyRule) -> tuple[object, ...]:
    """Every part of a rule that network maps depend on."""
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
    """The peers on one side of a rule. A resource takes the place of groups. Deleted peers, and peers whose owner is
    not admitted, are left out."""
    if resource is None:
        members = account.members(groups)
    else:
        members = frozenset((PeerId(resource.id),) if resource.type is ResourceType.PEER else ())
    present = (peer for id_ in sorted(members) if (peer := account.peers.get(id_)) is not None)
    return {peer.id: peer for peer in present if owner_refusal(peer, account) is None}
