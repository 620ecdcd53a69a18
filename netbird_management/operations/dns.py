"""DNS settings for an account's peers: name servers, zones, and groups without DNS management."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from netbird_management.model.accounts import Dns, NameserverGroup, Zone, ZoneRecord
from netbird_management.model.activity import Activity
from netbird_management.model.domains import folded, is_under
from netbird_management.model.errors import Conflict, InvalidArgument, NotFound
from netbird_management.model.ids import AccountId, GroupId, new_id
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.store.models import AccountRow, NameserverGroupRow, ZoneRow
from netbird_management.store.state import State, Transaction
from netbird_management.store.stored import decoded

RECORD_TYPES: Final = ("A", "AAAA", "CNAME")


async def set_disabled_groups(state: State, account_id: AccountId, group_ids: Sequence[GroupId]) -> None:
    """Sets the groups whose peers get no DNS configuration. Raises `InvalidArgument`."""
    async with state.change(account_id) as transaction:
        transaction.account.require_groups(group_ids)
        row = await transaction.session.get_one(AccountRow, account_id)
        row.settings = {**row.settings, "disabled_management_groups": list(group_ids)}
        transaction.touch(account=True)
        transaction.record(Activity.DNS_SETTINGS, account_id, disabled_management_groups=list(group_ids))
        await transaction.raise_serial()


async def save_nameservers(state: State, account_id: AccountId, given: NameserverGroup) -> NameserverGroup:
    """Creates a group of name servers or, with an id, replaces it. Raises `InvalidArgument`, `NotFound`."""
    async with state.change(account_id) as transaction:
        checked = _checked_nameservers(given, transaction.account)
        columns = {
            "name": checked.name,
            "description": checked.description,
            "enabled": checked.enabled,
            "primary": checked.primary,
            "nameservers": [asdict(server) for server in checked.nameservers],
            "groups": list(checked.groups),
            "domains": list(checked.domains),
            "search_domains_enabled": checked.search_domains_enabled,
        }
        id_ = checked.id or new_id()
        if checked.id:
            row = await transaction.session.get(NameserverGroupRow, id_)
            if row is None or row.account_id != account_id:
                raise NotFound(f"nameserver group {id_} not found")
            for name, value in columns.items():
                setattr(row, name, value)
        else:
            transaction.session.add(NameserverGroupRow(id=id_, account_id=account_id, **columns))
        transaction.record(
            Activity.NAMESERVERS_UPDATE if checked.id else Activity.NAMESERVERS_ADD, id_, name=checked.name
        )
        await _record_change(transaction)
    return get_nameservers(state, account_id, id_)


async def delete_nameservers(state: State, account_id: AccountId, id_: str) -> None:
    """Raises `NotFound`."""
    async with state.change(account_id) as transaction:
        row = await transaction.session.get(NameserverGroupRow, id_)
        if row is None or row.account_id != account_id:
            raise NotFound(f"nameserver group {id_} not found")
        transaction.record(Activity.NAMESERVERS_DELETE, id_, name=row.name)
        await transaction.session.delete(row)
        await _record_change(transaction)


def get_nameservers(state: State, account_id: AccountId, id_: str) -> NameserverGroup:
    """Raises `NotFound`."""
    for group in _dns(state, account_id).nameservers:
        if group.id == id_:
            return group
    raise NotFound(f"nameserver group {id_} not found")


async def save_zone(state: State, account_id: AccountId, given: Zone) -> Zone:
    """Creates a zone or, with an id, replaces everything except its domain and records. Raises like
    `save_nameservers`, and `Conflict`."""
    async with state.change(account_id) as transaction:
        account = transaction.account
        if not 1 <= len(given.name) <= 255:
            raise InvalidArgument("zone name must be 1 to 255 characters")
        if not given.distribution_groups:
            raise InvalidArgument("a zone needs at least one distribution group")
        account.require_groups(given.distribution_groups)
        domain = folded(given.domain)
        id_ = given.id or new_id()
        if given.id:
            row = await _zone_row(transaction, id_)
            if row.domain != domain:
                raise InvalidArgument("the domain of a zone cannot be changed")
            row.name, row.enabled, row.enable_search_domain = given.name, given.enabled, given.enable_search_domain
            row.distribution_groups = list(given.distribution_groups)
        else:
            if any(zone.domain == domain for zone in account.dns.zones):
                raise Conflict(f"zone {domain} already exists")
            if domain == account.account.dns_domain:
                raise InvalidArgument(f"zone {domain} is the domain of the account's peers")
            transaction.session.add(
                ZoneRow(
                    id=id_,
                    account_id=account_id,
                    name=given.name,
                    domain=domain,
                    enabled=given.enabled,
                    enable_search_domain=given.enable_search_domain,
                    distribution_groups=list(given.distribution_groups),
                    records=[],
                )
            )
        transaction.record(Activity.ZONE_UPDATE if given.id else Activity.ZONE_ADD, id_, name=given.name, domain=domain)
        await _record_change(transaction)
    return get_zone(state, account_id, id_)


async def delete_zone(state: State, account_id: AccountId, id_: str) -> None:
    """Raises `NotFound`."""
    async with state.change(account_id) as transaction:
        row = await _zone_row(transaction, id_)
        transaction.record(Activity.ZONE_DELETE, id_, name=row.name, domain=row.domain)
        await transaction.session.delete(row)
        await _record_change(transaction)


def get_zone(state: State, account_id: AccountId, id_: str) -> Zone:
    """Raises `NotFound`."""
    for zone in _dns(state, account_id).zones:
        if zone.id == id_:
            return zone
    raise NotFound(f"zone {id_} not found")


async def save_record(state: State, account_id: AccountId, zone_id: str, given: ZoneRecord) -> ZoneRecord:
    """Adds a record to a zone or, with an id, replaces it. Raises like `save_zone`."""
    async with state.change(account_id) as transaction:
        row = await _zone_row(transaction, zone_id)
        checked = _checked_record(given, row.domain)
        records = list(decoded(tuple[ZoneRecord, ...], row.records))
        if checked.id and checked.id not in {record.id for record in records}:
            raise NotFound(f"record {checked.id} not found")
        others = [record for record in records if record.id != checked.id]
        if any(replace(record, id=checked.id, ttl=checked.ttl) == checked for record in others):
            raise Conflict("an identical record already exists")
        if any(record.name == checked.name and "CNAME" in (record.type, checked.type) for record in others):
            raise Conflict(f"{checked.name} cannot be an alias and have other records")
        saved = checked if checked.id else replace(checked, id=new_id())
        kept = [saved if record.id == saved.id else record for record in records]
        row.records = [asdict(record) for record in (kept if checked.id else [*kept, saved])]
        transaction.record(Activity.ZONE_UPDATE, zone_id, name=row.name, domain=row.domain, record=saved.name)
        await _record_change(transaction)
    return saved


async def delete_record(state: State, account_id: AccountId, zone_id: str, record_id: str) -> None:
    """Raises `NotFound`."""
    async with state.change(account_id) as transaction:
        row = await _zone_row(transaction, zone_id)
        left = [record for record in row.records if record["id"] != record_id]
        if len(left) == len(row.records):
            raise NotFound(f"record {record_id} not found")
        row.records = left
        transaction.record(Activity.ZONE_UPDATE, zone_id, name=row.name, domain=row.domain)
        await _record_change(transaction)


async def _record_change(transaction: Transaction) -> None:
    transaction.touch(dns=True)
    await transaction.raise_serial()


async def _zone_row(transaction: Transaction, id_: str) -> ZoneRow:
    row = await transaction.session.get(ZoneRow, id_)
    if row is None or row.account_id != transaction.account_id:
        raise NotFound(f"zone {id_} not found")
    return row


def _dns(state: State, account_id: AccountId) -> Dns:
    account = state.snapshots.get(account_id)
    return account.dns if account is not None else Dns()


def _checked_nameservers(given: NameserverGroup, account: AccountSnapshot) -> NameserverGroup:
    if not 1 <= len(given.name) <= 40:
        raise InvalidArgument("nameserver group name must be 1 to 40 characters")
    if len(given.description) > 1024:
        raise InvalidArgument("nameserver group description must be at most 1024 characters")
    if any(other.name == given.name and other.id != given.id for other in account.dns.nameservers):
        raise InvalidArgument(f"a nameserver group with name {given.name} already exists")
    if not 1 <= len(given.nameservers) <= 3:
        raise InvalidArgument("a nameserver group must have 1 to 3 nameservers")
    for server in given.nameservers:
        try:
            ip_address(server.ip)
        except ValueError as error:
            raise InvalidArgument(f"nameserver {server.ip} is not an address") from error
        if not 0 < server.port < 65536:
            raise InvalidArgument("nameserver port must be between 1 and 65535")
    if given.primary == bool(given.domains):
        raise InvalidArgument("a nameserver group must either be primary or have domains")
    if given.primary and given.search_domains_enabled:
        raise InvalidArgument("search domains are not supported for a primary nameserver group")
    if not given.groups:
        raise InvalidArgument("a nameserver group needs at least one group")
    account.require_groups(given.groups)
    return replace(given, domains=tuple(folded(domain) for domain in given.domains))


def _checked_record(given: ZoneRecord, zone: str) -> ZoneRecord:
    name = folded(given.name)
    if not is_under(name, zone):
        raise InvalidArgument(f"record name {given.name} must be in the zone {zone}")
    if not 0 <= given.ttl < 1 << 31:
        raise InvalidArgument("ttl must not be negative")
    content = given.content
    if given.type not in RECORD_TYPES:
        raise InvalidArgument(f'record type "{given.type}" is not one of {", ".join(RECORD_TYPES)}')
    if given.type == "CNAME":
        content = folded(content)
    else:
        family = IPv4Address if given.type == "A" else IPv6Address
        try:
            content = str(family(content))
        except ValueError as error:
            raise InvalidArgument(f"content {content} is not valid for a record of type {given.type}") from error
    return replace(given, name=name, content=content)
