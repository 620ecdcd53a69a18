"""Groups: sets of peers to which policies grant access."""

from collections.abc import Iterable

from sqlalchemy import select

from netbird_management.model.accounts import ALL_GROUP, Group
from netbird_management.model.activity import Activity
from netbird_management.model.errors import BadRequest, Conflict, InvalidArgument, NotFound
from netbird_management.model.ids import AccountId, GroupId, PeerId, new_id
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.membership import move
from netbird_management.store.models import GroupRow, SetupKeyRow
from netbird_management.store.state import State


async def create_group(state: State, account_id: AccountId, *, name: str, peers: Iterable[PeerId] = ()) -> Group:
    """Creates a group. Raises `InvalidArgument` for a bad name or an unknown peer, `Conflict` for a taken name."""
    group_id, members = GroupId(new_id()), frozenset(peers)
    async with state.change(account_id) as transaction:
        _check(transaction.account, name, members, None)
        transaction.session.add(GroupRow(id=group_id, account_id=account_id, name=name))
        transaction.touch(groups=[group_id])
        transaction.record(Activity.GROUP_ADD, group_id, name=name)
        await transaction.session.flush()
        await move(transaction, members, join=[group_id])
    return _group(state, account_id, group_id)


async def update_group(
    state: State, account_id: AccountId, group_id: GroupId, *, name: str, peers: Iterable[PeerId] | None
) -> Group:
    """Renames a group and replaces its members; `None` keeps them. Raises as `create_group`, and `NotFound`."""
    async with state.change(account_id) as transaction:
        group = transaction.account.groups.get(group_id)
        if group is None:
            raise NotFound(f"group: {group_id} not found")
        if group.name == ALL_GROUP:
            raise InvalidArgument("updating group all is not allowed")
        members = group.peers if peers is None else frozenset(peers)
        _check(transaction.account, name, members, group)
        (await transaction.session.get_one(GroupRow, group_id)).name = name
        transaction.touch(groups=[group_id])
        transaction.record(Activity.GROUP_UPDATE, group_id, name=name)
        await transaction.session.flush()
        await move(transaction, group.peers - members, leave=[group_id])
        await move(transaction, members - group.peers, join=[group_id])
    return _group(state, account_id, group_id)


async def delete_group(state: State, account_id: AccountId, group_id: GroupId) -> None:
    """Raises `NotFound`, `InvalidArgument` for `All`, and `BadRequest` while something still names the group."""
    async with state.change(account_id) as transaction:
        group = transaction.account.groups.get(group_id)
        if group is None:
            raise NotFound(f"group: {group_id} not found")
        if group.name == ALL_GROUP:
            raise InvalidArgument("deleting group all is not allowed")
        if user := _user_of(transaction.account, group_id):
            raise BadRequest(f"group has been linked to {user}")
        keys = await transaction.session.scalars(
            select(SetupKeyRow).where(SetupKeyRow.account_id == account_id).order_by(SetupKeyRow.id)
        )
        for key in keys.all():
            if group_id in key.auto_groups:
                raise BadRequest(f"group has been linked to setup key: {key.name}")
        await transaction.session.delete(await transaction.session.get_one(GroupRow, group_id))
        transaction.touch(groups=[group_id])
        transaction.record(Activity.GROUP_DELETE, group_id, name=group.name)
        await transaction.raise_serial()


def _user_of(account: AccountSnapshot, group_id: GroupId) -> str:
    """A description of an object that refers to the group; "" if none does."""
    for service in account.index.naming(group_id).values():
        return f"reverse proxy service: {service.domain}"
    for policy in account.policies.values():
        if any(group_id in (*rule.sources, *rule.destinations) for rule in policy.rules):
            return f"policy: {policy.name}"
    for servers in account.dns.nameservers:
        if group_id in servers.groups:
            return f"name server groups: {servers.name}"
    for zone in account.dns.zones:
        if group_id in zone.distribution_groups:
            return f"dns zone: {zone.domain}"
    for network in account.networks:
        for resource in network.resources:
            if group_id in resource.groups:
                return f"network resource: {resource.name}"
        if any(group_id in router.peer_groups for router in network.routers):
            return f"network router: {network.name}"
    if group_id in account.account.settings.disabled_management_groups:
        return "disabled DNS management groups"
    if group_id in account.account.settings.peer_expose_groups:
        return "settings"
    for user in account.users.values():
        if group_id in user.auto_groups:
            return f"user: {user.id}"
    return ""


def _check(account: AccountSnapshot, name: str, peers: frozenset[PeerId], group: Group | None) -> None:
    # Proxies send names in a header, separated by commas.
    if not name or len(name) > 255 or "," in name or not name.isprintable():
        raise InvalidArgument("group name must be 1 to 255 printable characters without a comma")
    if any(other.name == name for other in account.groups.values() if group is None or other.id != group.id):
        raise Conflict(f"group with name {name} already exists")
    for peer_id in peers:
        peer = account.peers.get(peer_id)
        if peer is None:
            raise InvalidArgument(f"peer with id {peer_id} not found")
        if peer.proxy is not None:
            raise InvalidArgument(f"peer {peer_id} belongs to a proxy and cannot be in a group")


def _group(state: State, account_id: AccountId, group_id: GroupId) -> Group:
    snapshot = state.snapshots.get(account_id)
    if snapshot is None or group_id not in snapshot.groups:
        raise NotFound(f"group: {group_id} not found")
    return snapshot.groups[group_id]
