"""Custom domains of accounts. A domain is validated as long as DNS shows the account's proof.

The proof is a TXT record with a value derived from account and domain, so another account cannot use it. A CNAME or
wildcard that leads to a cluster is no proof.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

import dns.asyncresolver
import dns.exception
import dns.resolver
from sqlalchemy import or_, select, update

from netbird_management.model.accounts import CustomDomain
from netbird_management.model.activity import Activity
from netbird_management.model.clock import now
from netbird_management.model.domains import fold, fold_address, is_public_suffix, is_under
from netbird_management.model.errors import Conflict, InvalidArgument, NotFound
from netbird_management.model.ids import AccountId, new_id
from netbird_management.operations.proxies import clusters_of, shared_addresses
from netbird_management.store.models import DomainRow
from netbird_management.store.state import State, Transaction

# Label of the TXT record, below the domain.
LABEL: Final = "_netbird-challenge"
PREFIX: Final = "netbird-account="
# Label of the CNAME to the cluster, below the domain, for domains that an earlier version validated by it.
OLD_LABEL: Final = "validation"
# Time between DNS queries for the proof of a domain.
PROVED_EVERY: Final = timedelta(hours=6)
# Time without its proof after which a domain is no longer validated. A query that no name server answers does not
# count.
LOST_AFTER: Final = timedelta(days=3)
# Time without a proof after which a domain is deleted, unless services are at or below it.
FORGOTTEN_AFTER: Final = timedelta(days=14)
# Maximum number of domains queried in one round, of all accounts and of one account.
ASKED_AT_ONCE: Final = 20
ASKED_OF_AN_ACCOUNT: Final = 5
HOPS: Final = 8
SECONDS: Final = 5.0


class Resolver(Protocol):
    async def aliases(self, name: str) -> list[str]:
        """The targets of a name's chain of CNAME records, in order, folded; empty if the lookup fails."""

    async def texts(self, name: str) -> list[str] | None:
        """The TXT records of a name; `None` if no name server answers."""


class DnsResolver:
    """Queries the given servers (`address` or `address:port`), or the system's. `seconds` limits each query; on expiry
    it counts as unanswered."""

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
        names: list[str] = []
        for _ in range(HOPS):
            try:
                answer = await self._resolver.resolve(name, "CNAME")
                name = fold(answer[0].target.to_text())
            except (dns.exception.DNSException, OSError, ValueError):
                break
            names.append(name)
        return names

    async def texts(self, name: str) -> list[str] | None:
        try:
            answer = await self._resolver.resolve(name, "TXT")
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except (dns.exception.DNSException, OSError, ValueError):
            return None
        return [b"".join(record.strings).decode("utf-8", "replace") for record in answer]


@dataclass(frozen=True, slots=True)
class Proof:
    """The TXT record that proves that a domain belongs to an account."""

    name: str
    value: str


def proof_of(account_id: AccountId, domain: str) -> Proof:
    """The proof of a folded domain. It depends only on the account's id and the domain."""
    digest = hashlib.sha256(f"{account_id}\0{domain}".encode()).hexdigest()
    return Proof(f"{LABEL}.{domain}", f"{PREFIX}{digest[:40]}")


async def create_domain(
    state: State,
    resolver: Resolver,
    account_id: AccountId,
    *,
    domain: str,
    target_cluster: str,
    refused_domains: Sequence[str] = (),
) -> CustomDomain:
    """Stores a domain, validated or not. Until it is validated, other accounts may still claim the name, and services
    under it are withheld.

    `target_cluster` is a connected cluster, or an address at or below the domain that the account's own proxies will
    declare. Raises `InvalidArgument` for text that is not a domain, a domain that is not permitted, and a cluster that
    the account cannot use; `Conflict` for a domain that is taken.
    """
    try:
        folded, target = fold(domain), fold_address(target_cluster)
    except ValueError as error:
        raise InvalidArgument(str(error)) from error
    if is_public_suffix(folded) or any(
        is_under(folded, refused) or is_under(refused, folded) for refused in refused_domains
    ):
        raise InvalidArgument(f"domain {folded} is not available here")
    connected = {cluster.address for cluster in await clusters_of(state, account_id) if cluster.online}
    if target not in connected and not is_under(target, folded):
        raise InvalidArgument(f"target cluster {target} is not available: none of its proxies is connected")
    await _check_clusters(state, folded)
    is_proved = await _is_proved(resolver, account_id, folded, target)
    row_id, moment = new_id(), now()
    async with state.change(account_id) as transaction:
        if any(custom.domain == folded for custom in transaction.account.custom_domains):
            raise Conflict(f"domain {folded} is already taken")
        _check_free(state, account_id, folded)
        row = DomainRow(
            id=row_id,
            account_id=account_id,
            domain=folded,
            target_cluster=target,
            validated=bool(is_proved),
            created_at=moment,
            proved_at=moment if is_proved else None,
            asked_at=moment,
        )
        transaction.session.add(row)
        transaction.touch(domains=True)
        transaction.record(Activity.DOMAIN_ADD, row_id, domain=folded, target_cluster=target, validated=bool(is_proved))
    return get_domain(state, account_id, row_id)


async def validate_domain(state: State, resolver: Resolver, account_id: AccountId, domain_id: str) -> bool:
    """Queries DNS for the proof; a validated domain stays validated. Returns False without a proof, and if another
    account has meanwhile proved the domain, a parent or a subdomain. Raises `NotFound`."""
    custom = get_domain(state, account_id, domain_id)
    if custom.validated:
        return True
    if not await _is_proved(resolver, account_id, custom.domain, custom.target_cluster):
        return False
    async with state.change(account_id) as transaction:
        row = await transaction.session.get(DomainRow, domain_id)
        if row is None or row.domain != custom.domain or row.target_cluster != custom.target_cluster:
            return False
        try:
            await _check_clusters(state, custom.domain)
            _check_free(state, account_id, custom.domain)
        except (InvalidArgument, Conflict):
            return False
        row.validated, row.by_alias, row.proved_at = True, False, now()
        transaction.touch(domains=True)
        _record_validation(transaction, row)
    return True


async def delete_domain(state: State, account_id: AccountId, domain_id: str) -> None:
    """Deletes a domain. Services under it stay stored and are withheld. Raises `NotFound`."""
    async with state.change(account_id) as transaction:
        row = await transaction.session.get(DomainRow, domain_id)
        if row is None or row.account_id != account_id:
            raise NotFound(f"domain {domain_id} not found")
        await _delete(transaction, row)


async def prove_domains_again(state: State, resolver: Resolver) -> None:
    """Queries DNS for domains that were last queried more than `PROVED_EVERY` ago, longest first. Services under
    domains that lost their proof are withheld, and domains that never get a proof are deleted."""
    due = or_(DomainRow.asked_at.is_(None), DomainRow.asked_at < now() - PROVED_EVERY)
    async with state.read() as session:
        rows = (await session.scalars(select(DomainRow).where(due).order_by(DomainRow.asked_at, DomainRow.id))).all()
    chosen: list[DomainRow] = []
    of_account: Counter[str] = Counter()
    for row in rows:
        if of_account[row.account_id] < ASKED_OF_AN_ACCOUNT and len(chosen) < ASKED_AT_ONCE:
            of_account[row.account_id] += 1
            chosen.append(row)
    answers = await asyncio.gather(*(_is_still_proved(resolver, row) for row in chosen))
    for row, answer in zip(chosen, answers, strict=True):
        await _record_answer(state, row, answer)


async def _is_still_proved(resolver: Resolver, row: DomainRow) -> bool | None:
    return await _is_proved(
        resolver, AccountId(row.account_id), row.domain, row.target_cluster, by_alias=row.by_alias and row.validated
    )


async def _record_answer(state: State, row: DomainRow, answer: bool | None) -> None:
    moment, account_id = now(), AccountId(row.account_id)
    asked = update(DomainRow).where(DomainRow.id == row.id).values(asked_at=moment)
    async with state.write() as session:
        await session.execute(asked.values(proved_at=moment) if answer and row.validated else asked)
    if answer is not False:
        return
    is_lost = row.validated and (row.proved_at or row.created_at) < moment - LOST_AFTER
    is_over = not row.validated and (row.proved_at or row.created_at) < moment - FORGOTTEN_AFTER
    if not is_lost and not is_over:
        return
    async with state.change(account_id) as transaction:
        current = await transaction.session.get(DomainRow, row.id)
        if current is None or current.validated != row.validated:
            return
        if is_lost:
            current.validated = current.by_alias = False
            transaction.touch(domains=True)
            _record_validation(transaction, current)
        elif not any(is_under(service.domain, row.domain) for service in transaction.account.services.values()):
            await _delete(transaction, current)


def _record_validation(transaction: Transaction, row: DomainRow) -> None:
    transaction.record(
        Activity.DOMAIN_VALIDATE,
        row.id,
        domain=row.domain,
        target_cluster=row.target_cluster,
        validated=row.validated,
    )


async def _delete(transaction: Transaction, row: DomainRow) -> None:
    transaction.record(
        Activity.DOMAIN_DELETE,
        row.id,
        domain=row.domain,
        target_cluster=row.target_cluster,
        validated=row.validated,
    )
    await transaction.session.delete(row)
    transaction.touch(domains=True)


def get_domain(state: State, account_id: AccountId, domain_id: str) -> CustomDomain:
    """A domain by id. Raises `NotFound`, also for another account's domain."""
    account = state.snapshots.get(account_id)
    for custom in account.custom_domains if account is not None else ():
        if custom.id == domain_id:
            return custom
    raise NotFound(f"domain {domain_id} not found")


async def _is_proved(
    resolver: Resolver, account_id: AccountId, domain: str, target_cluster: str, *, by_alias: bool = False
) -> bool | None:
    """True if DNS shows the account's proof, `None` if no name server answers. With `by_alias` the proof of earlier
    versions also counts: a chain of CNAME records that leads to the cluster."""
    proof = proof_of(account_id, domain)
    texts = await resolver.texts(proof.name)
    if texts is not None and proof.value in (text.strip() for text in texts):
        return True
    if by_alias and target_cluster in await resolver.aliases(f"{OLD_LABEL}.{domain}"):
        return True
    return None if texts is None else False


async def _check_clusters(state: State, domain: str) -> None:
    if any(is_under(domain, address) or is_under(address, domain) for address in await shared_addresses(state)):
        raise InvalidArgument(f"domain {domain} is above or below the address of a cluster")


def _check_free(state: State, account_id: AccountId, domain: str) -> None:
    if state.snapshots.names.others_have(domain, account_id):
        raise Conflict(f"domain {domain} is already taken")
    if state.snapshots.names.others_hold(domain, account_id):
        # A name above another account's could receive its cookies, one below could set them.
        raise InvalidArgument(f"domain {domain} is above or below a domain of another account")
