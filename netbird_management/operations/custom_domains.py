"""Domains that accounts bring along: theirs once DNS says so."""

from collections.abc import Sequence
from typing import Final, Protocol

import dns.asyncresolver
import dns.exception
from sqlalchemy import select

from netbird_management.model.accounts import CustomDomain
from netbird_management.model.activity import Activity
from netbird_management.model.domains import fold, is_under
from netbird_management.model.errors import Conflict, InvalidArgument, NotFound
from netbird_management.model.ids import AccountId, new_id
from netbird_management.operations.proxies import clusters_of
from netbird_management.store.models import DomainRow, ProxyRow
from netbird_management.store.state import State

LABEL: Final = "validation"
"""The name below the domain whose CNAME has to lead to the cluster."""
HOPS: Final = 8
SECONDS: Final = 5.0


class Resolver(Protocol):
    async def aliases(self, name: str) -> list[str]:
        """The names that a name leads to by CNAME, in order, folded. What cannot be looked up leads nowhere."""


class DnsResolver:
    """Asks the given servers (`address` or `address:port`), or those of the system, and waits so many seconds."""

    def __init__(self, servers: Sequence[str] = (), *, seconds: float = SECONDS) -> None:
        self._resolver = dns.asyncresolver.Resolver(configure=not servers)
        self._resolver.lifetime = seconds
        for server in servers:
            address, colon, port = server.rpartition(":")
            if colon and "]" not in port and (address.startswith("[") or ":" not in address):
                bare = address.strip("[]")
                self._resolver.nameservers = [*self._resolver.nameservers, bare]
                self._resolver.nameserver_ports[bare] = int(port)
            else:
                self._resolver.nameservers = [*self._resolver.nameservers, server]

    async def aliases(self, name: str) -> list[str]:
        found: list[str] = []
        for _ in range(HOPS):
            try:
                answer = await self._resolver.resolve(name, "CNAME")
                name = fold(answer[0].target.to_text())
            except (dns.exception.DNSException, OSError, ValueError):
                break
            found.append(name)
        return found


async def create_domain(
    state: State,
    resolver: Resolver,
    account_id: AccountId,
    *,
    domain: str,
    target_cluster: str,
    refused_domains: Sequence[str] = (),
) -> CustomDomain:
    """Stored whatever DNS says; services under it are mapped once it is validated.

    Raises `InvalidArgument` for a name that is none or must not be had, and for a cluster that the account has no
    proxies in; `Conflict` for a domain that is taken.
    """
    try:
        folded = fold(domain)
    except ValueError as error:
        raise InvalidArgument(str(error)) from error
    if "." not in folded or any(is_under(folded, refused) or is_under(refused, folded) for refused in refused_domains):
        raise InvalidArgument(f"domain {folded} is not available here")
    clusters = await clusters_of(state, account_id)
    if target_cluster not in {cluster.address for cluster in clusters if cluster.online}:
        raise InvalidArgument(f"target cluster {target_cluster} is not available: no proxy of it is connected")
    if any(is_under(folded, address) or is_under(address, folded) for address in await _addresses(state)):
        raise InvalidArgument(f"domain {folded} is above or below the address of a cluster")
    validated = await _is_validated(resolver, folded, target_cluster)
    row_id = new_id()
    async with state.change(account_id) as transaction:
        _check_free(state, account_id, folded)
        row = DomainRow(
            id=row_id, account_id=account_id, domain=folded, target_cluster=target_cluster, validated=validated
        )
        transaction.session.add(row)
        transaction.touch(domains=True)
        transaction.record(
            Activity.DOMAIN_ADD, row_id, domain=folded, target_cluster=target_cluster, validated=validated
        )
    return get_domain(state, account_id, row_id)


async def validate_domain(state: State, resolver: Resolver, account_id: AccountId, domain_id: str) -> bool:
    """Asks DNS once more; what was validated stays so. Raises `NotFound`."""
    custom = get_domain(state, account_id, domain_id)
    if custom.validated:
        return True
    if not await _is_validated(resolver, custom.domain, custom.target_cluster):
        return False
    async with state.change(account_id) as transaction:
        row = await transaction.session.get(DomainRow, domain_id)
        if row is None or row.domain != custom.domain or row.target_cluster != custom.target_cluster:
            return False
        row.validated = True
        transaction.touch(domains=True)
        transaction.record(
            Activity.DOMAIN_VALIDATE,
            domain_id,
            domain=custom.domain,
            target_cluster=custom.target_cluster,
            validated=True,
        )
    return True


async def delete_domain(state: State, account_id: AccountId, domain_id: str) -> None:
    """Services under it stay, and are withheld. Raises `NotFound`."""
    async with state.change(account_id) as transaction:
        row = await transaction.session.get(DomainRow, domain_id)
        if row is None or row.account_id != account_id:
            raise NotFound(f"domain {domain_id} not found")
        transaction.record(
            Activity.DOMAIN_DELETE,
            domain_id,
            domain=row.domain,
            target_cluster=row.target_cluster,
            validated=row.validated,
        )
        await transaction.session.delete(row)
        transaction.touch(domains=True)


def get_domain(state: State, account_id: AccountId, domain_id: str) -> CustomDomain:
    """Raises `NotFound`, also for another account's."""
    account = state.snapshots.get(account_id)
    for custom in account.custom_domains if account is not None else ():
        if custom.id == domain_id:
            return custom
    raise NotFound(f"domain {domain_id} not found")


async def _is_validated(resolver: Resolver, domain: str, target_cluster: str) -> bool:
    """Whether the name below the domain leads to the cluster, at once or by way of others."""
    return target_cluster.lower().rstrip(".") in await resolver.aliases(f"{LABEL}.{domain}")


def _check_free(state: State, account_id: AccountId, domain: str) -> None:
    if any(custom.domain == domain for snapshot in state.snapshots.all() for custom in snapshot.custom_domains):
        raise Conflict(f"domain {domain} is already taken")
    if state.snapshots.names.others_hold(domain, account_id):
        # A name above another account's could receive its cookies, one below could set them.
        raise InvalidArgument(f"domain {domain} is above or below a domain of another account")


async def _addresses(state: State) -> list[str]:
    """The addresses of all clusters there are, as domains."""
    async with state.read() as session:
        rows = (await session.scalars(select(ProxyRow.cluster_address).distinct())).all()
    return [address.lower().rstrip(".") for address in rows]
