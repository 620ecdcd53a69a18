"""Creation, changes and deletion of policies."""

from dataclasses import replace

from netbird_management.compute.wire_rules import PORTED, PROTOCOLS
from netbird_management.model.accounts import Policy, PolicyRule, Resource, ResourceType
from netbird_management.model.activity import Activity
from netbird_management.model.errors import InvalidArgument, NotFound
from netbird_management.model.ids import AccountId, PeerId, PolicyId, new_id
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.store import network_rows as rows
from netbird_management.store.models import PolicyRow
from netbird_management.store.state import State


async def create_policy(state: State, account_id: AccountId, given: Policy) -> Policy:
    """Stores a policy under a new id. Raises `InvalidArgument`."""
    policy_id = PolicyId(new_id())
    async with state.change(account_id) as transaction:
        policy = _checked(replace(given, id=policy_id), transaction.account)
        transaction.session.add(rows.policy_row(account_id, policy))
        transaction.touch(policies=[policy_id])
        transaction.record(Activity.POLICY_ADD, policy_id, name=policy.name)
        await transaction.raise_serial()
    return get_policy(state, account_id, policy_id)


async def update_policy(state: State, account_id: AccountId, given: Policy) -> Policy:
    """Replaces a policy. Raises `NotFound`, `InvalidArgument`."""
    async with state.change(account_id) as transaction:
        if given.id not in transaction.account.policies:
            raise NotFound(f"policy: {given.id} not found")
        policy = _checked(given, transaction.account)
        row, new = await transaction.session.get_one(PolicyRow, given.id), rows.policy_row(account_id, policy)
        row.name, row.enabled, row.description, row.rules = new.name, new.enabled, new.description, new.rules
        transaction.touch(policies=[given.id])
        transaction.record(Activity.POLICY_UPDATE, given.id, name=policy.name)
        await transaction.raise_serial()
    return get_policy(state, account_id, given.id)


async def delete_policy(state: State, account_id: AccountId, policy_id: PolicyId) -> None:
    """Raises `NotFound`."""
    async with state.change(account_id) as transaction:
        policy = transaction.account.policies.get(policy_id)
        if policy is None:
            raise NotFound(f"policy: {policy_id} not found")
        await transaction.session.delete(await transaction.session.get_one(PolicyRow, policy_id))
        transaction.touch(policies=[policy_id])
        transaction.record(Activity.POLICY_DELETE, policy_id, name=policy.name)
        await transaction.raise_serial()


def get_policy(state: State, account_id: AccountId, policy_id: PolicyId) -> Policy:
    """A policy by id. Raises `NotFound`, also for another account's policy."""
    account = state.snapshots.get(account_id)
    if account is None or policy_id not in account.policies:
        raise NotFound(f"policy: {policy_id} not found")
    return account.policies[policy_id]


def _checked(policy: Policy, account: AccountSnapshot) -> Policy:
    if not policy.name or len(policy.name) > 255 or not policy.name.isprintable():
        raise InvalidArgument("policy name must be 1 to 255 printable characters")
    if len(policy.description) > 1024:
        raise InvalidArgument("policy description must be at most 1024 characters")
    if not policy.rules:
        raise InvalidArgument("policy rules are required")
    stored_ids = {rule.id for stored in account.policies.values() for rule in stored.rules if stored.id == policy.id}
    checked: list[PolicyRule] = []
    for i, rule in enumerate(policy.rules):
        _check_rule(i, rule, account)
        if rule.id and rule.id not in stored_ids:
            raise InvalidArgument(f"rules[{i}]: id {rule.id} is not a rule of this policy: omit it for a new rule")
        # Agents identify a rule by its id in maps, so management assigns the id and keeps it as long as the rule.
        kept = rule.id if rule.id in stored_ids else "" if i else str(policy.id)
        used = {other.id for other in checked}
        checked.append(replace(rule, id=kept if kept and kept not in used else new_id()))
    return replace(policy, rules=tuple(checked))


def _check_resource(where: str, side: str, resource: Resource, account: AccountSnapshot) -> None:
    if resource.type is ResourceType.PEER:
        peer = account.peers.get(PeerId(resource.id))
        there = peer is not None and peer.proxy is None
    else:
        match = account.resource(resource.id)
        there = match is not None and match[1].type is resource.type
        if there and side == "sources":
            raise InvalidArgument(
                f"{where}: {resource.type} {resource.id} is a network resource: it cannot be a policy source"
            )
    if not there:
        raise InvalidArgument(f"{where}: {resource.type} {resource.id} not found")


def _check_rule(i: int, rule: PolicyRule, account: AccountSnapshot) -> None:
    where = f"rules[{i}]"
    if not rule.name or len(rule.name) > 255 or not rule.name.isprintable():
        raise InvalidArgument(f"{where}: name must be 1 to 255 printable characters")
    if len(rule.description) > 1024:
        raise InvalidArgument(f"{where}: description must be at most 1024 characters")
    if rule.action not in ("accept", "drop"):
        raise InvalidArgument(f'{where}: action "{rule.action}" is not supported')
    if rule.protocol not in PROTOCOLS:
        raise InvalidArgument(f'{where}: protocol "{rule.protocol}" is not one of {", ".join(PROTOCOLS)}')
    for side, groups, resource in (
        ("sources", rule.sources, rule.source_resource),
        ("destinations", rule.destinations, rule.destination_resource),
    ):
        if bool(groups) == (resource is not None):
            raise InvalidArgument(f"{where}: exactly one of {side} and its resource must be set")
        for id_ in groups:
            if id_ not in account.groups:
                raise InvalidArgument(f"{where}: group {id_} not found")
        if resource is not None:
            _check_resource(where, side, resource, account)
    if rule.ports and rule.port_ranges:
        raise InvalidArgument(f"{where}: ports cannot be combined with port_ranges")
    if (rule.ports or rule.port_ranges) and rule.protocol not in PORTED:
        raise InvalidArgument(f"{where}: ports are not supported for protocol {rule.protocol}")
    edges = [*rule.ports, *(port for ports in rule.port_ranges for port in (ports.start, ports.end))]
    if any(not 0 < port < 65536 for port in edges) or any(ports.start > ports.end for ports in rule.port_ranges):
        raise InvalidArgument(f"{where}: ports must be between 1 and 65535, ranges in order")
