"""The names that proxies give themselves."""

from netbird_management.model.ids import AccountId, ProxyId
from netbird_management.store.models import ProxyRow
from netbird_management.store.state import State


async def proxy_id_is_free(state: State, proxy_id: ProxyId, account_id: AccountId | None) -> bool:
    """Whether a proxy of this account (`None`: of all) may call itself so: nobody else's is known by that name.

    An account's own token must not be enough to take a shared proxy's place.
    """
    async with state.read() as session:
        row = await session.get(ProxyRow, proxy_id)
    return row is None or row.account_id == account_id
