"""How much there may be of what an account's people and machines add. One more is refused, and nothing is lost."""

from collections.abc import Mapping, Sized
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from netbird_management.model.errors import PreconditionFailed
from netbird_management.model.snapshot import AccountSnapshot

HELD: Final[Mapping[str, int]] = {
    "users": 10_000,
    "groups": 10_000,
    "peers": 30_000,
    "services": 20_000,
    "policies": 5_000,
    "custom domains": 2_000,
    "networks": 1_000,
    "resources of networks": 5_000,
    "routers of networks": 5_000,
    "name servers": 1_000,
    "zones": 1_000,
    "records of zones": 5_000,
}
"""What the snapshot of an account holds."""
SETUP_KEYS: Final = 1_000
TOKENS_OF_A_USER: Final = 100
PROXY_TOKENS: Final = 1_000
"""Of one account; those that are revoked are no longer counted."""


def check_room(before: AccountSnapshot | None, after: AccountSnapshot | None, limits: Mapping[str, int]) -> None:
    """Whether a change may be kept. One that adds nothing may, also where there is too much already.

    Raises `PreconditionFailed`.
    """
    if after is None:
        return
    held, were = _held(after), _held(before) if before is not None else {}
    for name, limit in limits.items():
        if len(held[name]) > limit and len(held[name]) > len(were.get(name, ())):
            raise PreconditionFailed(f"this account is full: it keeps {limit} {name}")


def _held(account: AccountSnapshot) -> dict[str, Sized]:
    return {
        "users": account.users,
        "groups": account.groups,
        "peers": account.peers,
        "services": account.services,
        "policies": account.policies,
        "custom domains": account.custom_domains,
        "networks": account.networks,
        "resources of networks": [one for network in account.networks for one in network.resources],
        "routers of networks": [one for network in account.networks for one in network.routers],
        "name servers": account.dns.nameservers,
        "zones": account.dns.zones,
        "records of zones": [one for zone in account.dns.zones for one in zone.records],
    }


async def check_rows(session: AsyncSession, model: Any, *where: Any, limit: int, name: str) -> None:
    """The same for what is in the store alone, before one more is added. Raises `PreconditionFailed`."""
    held = await session.scalar(select(func.count()).select_from(model).where(*where)) or 0
    if held >= limit:
        raise PreconditionFailed(f"there are {limit} {name} already: delete some")
