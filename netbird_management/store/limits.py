"""Maximum numbers of objects in an account. An addition beyond a limit is refused; existing objects stay."""

from collections.abc import Mapping, Sized
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from netbird_management.model.errors import PreconditionFailed
from netbird_management.model.snapshot import AccountSnapshot

# Maximum number of each kind of object in an account's snapshot.
IN_SNAPSHOT: Final[Mapping[str, int]] = {
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
SETUP_KEYS: Final = 1_000
TOKENS_OF_A_USER: Final = 100
# Maximum number of an account's proxy tokens; revoked tokens do not count.
PROXY_TOKENS: Final = 1_000


def check_objects(before: AccountSnapshot | None, after: AccountSnapshot | None, limits: Mapping[str, int]) -> None:
    """Raises `PreconditionFailed` if a change adds objects beyond a limit. A change that adds none is always allowed,
    even above the limit."""
    if after is None:
        return
    now, earlier = _objects(after), _objects(before) if before is not None else {}
    for name, limit in limits.items():
        if len(now[name]) > limit and len(now[name]) > len(earlier.get(name, ())):
            raise PreconditionFailed(f"this account is full: it can contain at most {limit} {name}")


def _objects(account: AccountSnapshot) -> dict[str, Sized]:
    return {
        "users": account.users,
        "groups": account.groups,
        "peers": account.peers,
        "services": account.services,
        "policies": account.policies,
        "custom domains": account.custom_domains,
        "networks": account.networks,
        "resources of networks": [resource for network in account.networks for resource in network.resources],
        "routers of networks": [router for network in account.networks for router in network.routers],
        "name servers": account.dns.nameservers,
        "zones": account.dns.zones,
        "records of zones": [record for zone in account.dns.zones for record in zone.records],
    }


async def check_rows(session: AsyncSession, model: Any, *where: Any, limit: int, name: str) -> None:
    """Raises `PreconditionFailed` if `limit` matching rows exist, before a row is added that no snapshot contains."""
    count = await session.scalar(select(func.count()).select_from(model).where(*where)) or 0
    if count >= limit:
        raise PreconditionFailed(f"the limit of {limit} {name} is reached: delete some")
