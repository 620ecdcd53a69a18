"""Changes of an account's settings, and deletion of accounts."""

from dataclasses import asdict, dataclass

from netbird_management.model.accounts import Account, AccountSettings
from netbird_management.model.activity import Activity
from netbird_management.model.domains import folded
from netbird_management.model.errors import InvalidArgument, NotFound
from netbird_management.model.ids import AccountId
from netbird_management.store.models import AccountRow
from netbird_management.store.state import State


@dataclass(frozen=True, slots=True)
class SettingsChange:
    """New settings of an account; an empty `dns_domain` keeps the stored one."""

    settings: AccountSettings
    dns_domain: str = ""


async def update_account(state: State, account_id: AccountId, given: SettingsChange) -> Account:
    """Stores new settings, except the groups without DNS management, which `set_disabled_groups` changes.

    Raises `InvalidArgument`, `NotFound`.
    """
    settings = given.settings
    if settings.peer_login_expiration < 0 or settings.peer_inactivity_expiration < 0:
        raise InvalidArgument("peer_login_expiration and peer_inactivity_expiration must not be negative")
    if settings.peer_login_expiration_enabled and settings.peer_login_expiration == 0:
        raise InvalidArgument("peer_login_expiration must be above 0 while logins expire: no login would last")
    dns_domain = folded(given.dns_domain) if given.dns_domain else ""
    async with state.change(account_id) as transaction:
        account = transaction.account
        account.require_groups(settings.peer_expose_groups)
        if dns_domain and any(zone.domain == dns_domain for zone in account.dns.zones):
            raise InvalidArgument(f"dns_domain {dns_domain} is already a zone of the account")
        row = await transaction.session.get_one(AccountRow, account_id)
        kept = row.settings.get("disabled_management_groups", [])
        row.settings = {**asdict(settings), "disabled_management_groups": kept}
        if dns_domain:
            row.dns_domain = dns_domain
        transaction.touch(account=True)
        transaction.record(Activity.ACCOUNT_SETTINGS, account_id)
        await transaction.raise_serial()
    snapshot = state.snapshots.get(account_id)
    if snapshot is None:
        raise NotFound(f"account {account_id} not found")
    return snapshot.account


async def delete_account(state: State, account_id: AccountId) -> None:
    """Deletes an account with everything in it. Its access log is deleted within a minute, or after the next start.
    Raises `NotFound`."""
    async with state.change(account_id) as transaction:
        row = await transaction.session.get(AccountRow, account_id)
        if row is None:
            raise NotFound(f"account {account_id} not found")
        await transaction.session.delete(row)
        transaction.touch(account=True)
