"""Changes of networks behind routing peers: their resources and their routers."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from ipaddress import ip_interface, ip_network
from typing import Any, Final, TypeVar

from netbird_management.model.accounts import NetworkResource, NetworkRouter, ResourceType, RoutedNetwork
from netbird_management.model.activity import Activity
from netbird_management.model.domains import fold
from netbird_management.model.errors import Conflict, InvalidArgument, NotFound, PreconditionFailed
from netbird_management.model.ids import AccountId, new_id
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.store.models import NetworkRow
from netbird_management.store.state import State, Transaction

MAX_METRIC: Final = 9999
_Part = TypeVar("_Part", NetworkResource, NetworkRouter)


async def save_network(
    state: State, account_id: AccountId, network_id: str, *, name: str, description: str
) -> RoutedNetwork:
    """Creates a network or, with an id, renames it. Raises `InvalidArgument`, `NotFound`."""
    _check_name("network", name, description)
    async with state.change(account_id) as transaction:
        id_ = network_id or new_id()
        if network_id:
            row = await _row(transaction, network_id)
            row.name, row.description = name, description
        else:
            transaction.session.add(
                NetworkRow(id=id_, account_id=account_id, name=name, description=description, resources=[], routers=[])
            )
        await _record_change(transaction, Activity.NETWORK_UPDATE if network_id else Activity.NETWORK_ADD, id_, name)
    return get_network(state, account_id, id_)


async def delete_network(state: State, account_id: AccountId, network_id: str) -> None:
    """Deletes a network with its resources and routers. Raises `NotFound`, and `PreconditionFailed` while a service or
    policy uses one of its resources."""
    async with state.change(account_id) as transaction:
        network = _network(transaction.account, network_id)
        for resource in network.resources:
            _check_unused(transaction.account, resource.id)
        await transaction.session.delete(await _row(transaction, network_id))
        await _record_change(transaction, Activity.NETWORK_DELETE, network_id, network.name)


async def save_resource(
    state: State, account_id: AccountId, network_id: str, given: NetworkResource
) -> NetworkResource:
    """Creates a resource or, with an id, replaces it; its address determines its type.

    Raises `InvalidArgument`, `NotFound`, `Conflict` for another resource's name, and `PreconditionFailed` for a change
    of type while a service or policy uses it.
    """
    async with state.change(account_id) as transaction:
        account = transaction.account
        network = _network(account, network_id)
        resource = _checked_resource(given, account)
        if given.id:
            old = _in(network.resources, given.id, "resource")
            if old.type is not resource.type:
                _check_unused(account, given.id)
        others = (other for each in account.networks for other in each.resources if other.id != given.id)
        if any(other.name == resource.name for other in others):
            raise Conflict(f"resource with name {resource.name} already exists")
        resource = replace(resource, id=given.id or new_id())
        row = await _row(transaction, network_id)
        row.resources = _replaced(network.resources, resource)
        activity = Activity.RESOURCE_UPDATE if given.id else Activity.RESOURCE_ADD
        await _record_change(transaction, activity, resource.id, resource.name, network_id=network_id)
    return get_resource(state, account_id, network_id, resource.id)


async def delete_resource(state: State, account_id: AccountId, network_id: str, resource_id: str) -> None:
    """Deletes a resource. Raises `NotFound`, and `PreconditionFailed` while a service or policy uses it."""
    async with state.change(account_id) as transaction:
        network = _network(transaction.account, network_id)
        resource = _in(network.resources, resource_id, "resource")
        _check_unused(transaction.account, resource_id)
        row = await _row(transaction, network_id)
        row.resources = [asdict(other) for other in network.resources if other.id != resource_id]
        await _record_change(transaction, Activity.RESOURCE_DELETE, resource_id, resource.name, network_id=network_id)


async def save_router(state: State, account_id: AccountId, network_id: str, given: NetworkRouter) -> NetworkRouter:
    """Creates a router or, with an id, replaces it. Raises `InvalidArgument`, `NotFound`."""
    async with state.change(account_id) as transaction:
        network = _network(transaction.account, network_id)
        _check_router(given, transaction.account)
        if given.id:
            _in(network.routers, given.id, "router")
        router = replace(given, id=given.id or new_id())
        row = await _row(transaction, network_id)
        row.routers = _replaced(network.routers, router)
        activity = Activity.ROUTER_UPDATE if given.id else Activity.ROUTER_ADD
        await _record_change(transaction, activity, router.id, network.name, network_id=network_id)
    return _in(get_network(state, account_id, network_id).routers, router.id, "router")


async def delete_router(state: State, account_id: AccountId, network_id: str, router_id: str) -> None:
    """Raises `NotFound`."""
    async with state.change(account_id) as transaction:
        network = _network(transaction.account, network_id)
        _in(network.routers, router_id, "router")
        row = await _row(transaction, network_id)
        row.routers = [asdict(other) for other in network.routers if other.id != router_id]
        await _record_change(transaction, Activity.ROUTER_DELETE, router_id, network.name, network_id=network_id)


def get_network(state: State, account_id: AccountId, network_id: str) -> RoutedNetwork:
    """A network by id. Raises `NotFound`, also for another account's network."""
    account = state.snapshots.get(account_id)
    if account is None:
        raise NotFound(f"network: {network_id} not found")
    return _network(account, network_id)


def get_resource(state: State, account_id: AccountId, network_id: str, resource_id: str) -> NetworkResource:
    return _in(get_network(state, account_id, network_id).resources, resource_id, "resource")


def get_router(state: State, account_id: AccountId, network_id: str, router_id: str) -> NetworkRouter:
    return _in(get_network(state, account_id, network_id).routers, router_id, "router")


def typed_address(text: str) -> tuple[ResourceType, str]:
    """The type of an address, and its canonical text: `10.0.0.5` is a host, `10.0.0.0/16` a subnet, others are domains.

    Raises `InvalidArgument`.
    """
    text = text.strip()
    try:
        network = ip_network(text)
    except ValueError:
        pass
    else:
        single = network.prefixlen == network.max_prefixlen
        return ResourceType.HOST if single else ResourceType.SUBNET, str(network)
    if _is_interface(text):
        raise InvalidArgument(f"{text} has host bits set, use {ip_interface(text).network} instead")
    pattern, name = text.startswith("*."), text.removeprefix("*.")
    try:
        folded = fold(name)
    except ValueError as error:
        raise InvalidArgument(f'"{text}" is not an address, network or domain') from error
    return ResourceType.DOMAIN, "*." + folded if pattern else folded


def _is_interface(text: str) -> bool:
    try:
        ip_interface(text)
    except ValueError:
        return False
    return True


def _checked_resource(given: NetworkResource, account: AccountSnapshot) -> NetworkResource:
    _check_name("resource", given.name, given.description)
    account.require_groups(given.groups)
    kind, address = typed_address(given.address)
    return replace(given, type=kind, address=address)


def _check_router(router: NetworkRouter, account: AccountSnapshot) -> None:
    if (router.peer is None) == (not router.peer_groups):
        raise InvalidArgument("exactly one of peer and peer_groups must be set")
    if not 1 <= router.metric <= MAX_METRIC:
        raise InvalidArgument(f"metric must be between 1 and {MAX_METRIC}")
    account.require_groups(router.peer_groups)
    if router.peer is not None:
        peer = account.peers.get(router.peer)
        if peer is None or peer.proxy is not None:
            raise InvalidArgument(f"peer {router.peer} not found")


def _check_name(what: str, name: str, description: str) -> None:
    if not 1 <= len(name) <= 255 or not name.isprintable():
        raise InvalidArgument(f"{what} name must be 1 to 255 printable characters")
    if len(description) > 1024:
        raise InvalidArgument(f"{what} description must be at most 1024 characters")


def _check_unused(account: AccountSnapshot, resource_id: str) -> None:
    for service in account.index.targeting_resource(resource_id).values():
        raise PreconditionFailed(f"resource {resource_id} is a target of service {service.id}")
    for policy in account.policies.values():
        for rule in policy.rules:
            if rule.destination_resource is not None and rule.destination_resource.id == resource_id:
                raise PreconditionFailed(f"resource {resource_id} is the destination of policy {policy.name}")


def _network(account: AccountSnapshot, network_id: str) -> RoutedNetwork:
    for network in account.networks:
        if network.id == network_id:
            return network
    raise NotFound(f"network: {network_id} not found")


def _in(parts: Sequence[_Part], id_: str, what: str) -> _Part:
    for part in parts:
        if part.id == id_:
            return part
    raise NotFound(f"network {what}: {id_} not found")


def _replaced(parts: Sequence[_Part], new: _Part) -> list[dict[str, Any]]:
    """The parts as JSON, with `new` in place of the part with its id, else at the end."""
    replaced: list[_Part] = [new if part.id == new.id else part for part in parts]
    if all(part.id != new.id for part in parts):
        replaced.append(new)
    return [asdict(part) for part in replaced]


async def _row(transaction: Transaction, network_id: str) -> NetworkRow:
    row = await transaction.session.get(NetworkRow, network_id)
    if row is None or row.account_id != transaction.account_id:
        raise NotFound(f"network: {network_id} not found")
    return row


async def _record_change(
    transaction: Transaction, activity: Activity, target_id: str, name: str, *, network_id: str | None = None
) -> None:
    transaction.record(activity, target_id, name=name, network_id=network_id)
    transaction.touch(networks=True)
    await transaction.raise_serial()
