"""Makes changes on a store and is killed by itself before its Nth statement; run by the tests of the store.

Arguments: directory, database ("" for files), the statement to die at (0 for never), what to do.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import event

from netbird_management.clock import now
from netbird_management.ids import AccountId, GroupId
from netbird_management.network.groups import create_group
from netbird_management.network.model import Role
from netbird_management.network.peers import create_stock_peer
from netbird_management.network.users import create_user, delete_user, update_user
from netbird_management.plugins import load_hooks
from netbird_management.services.edit import create_service, update_service
from netbird_management.services.model import Service, ServiceMeta, Target, TargetOptions, TargetType
from netbird_management.state import State
from netbird_management.store.vault import Vault


async def work(state: State, what: str) -> None:
    account = state.snapshots.all()[0]
    account_id = AccountId(account.account.id)
    match what:
        case "group":
            await create_group(state, account_id, name="made", peers=list(account.peers))
        case "peer":
            await create_stock_peer(state, account_id, name="made", user_id=None)
        case "user":
            user = next(user for user in account.users.values() if user.role is Role.USER)
            groups = [GroupId(group.id) for group in account.groups.values() if group.name == "engineering"]
            await update_user(state, account_id, user.id, role=Role.ADMIN, auto_groups=groups, blocked=True)
        case "user-gone":
            user = next(user for user in account.users.values() if user.role is Role.USER)
            await delete_user(state, account_id, user.id)
        case "new-user":
            await create_user(state, account_id, role=Role.USER, email="made@lab.test")
        case "service":
            await create_service(state, load_hooks(["private_service", "direct_upstream"]), service(account_id), SENT)
        case "service-changed":
            old = next(iter(account.services.values()))
            given = service(account_id, id_=old.id, port=9999)
            await update_service(
                state, load_hooks(["private_service", "direct_upstream"]), given, SENT, confirm_public=True
            )
        case _:
            raise ValueError(what)


SENT = frozenset({"private", "access_groups"})


def service(account_id: AccountId, *, id_: str = "", port: int = 9000) -> Service:
    target = Target(
        "px.test", TargetType.CLUSTER, "http", port, host="127.0.0.1", options=TargetOptions(direct_upstream=True)
    )
    domain = "old.px.test" if id_ else "made.px.test"
    return Service(
        id=id_,  # type: ignore[arg-type]
        account_id=account_id,
        name="made",
        domain=domain,
        proxy_cluster="",
        meta=ServiceMeta(created_at=now()),
        targets=(target,),
    )


def die_at(state: State, number: int) -> dict[str, int]:
    """Counts statements, commits too, from now on; the process is gone before the one with this number."""
    seen = {"statements": 0}

    def step(*_: Any) -> None:
        seen["statements"] += 1
        if seen["statements"] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    engine = state._engine.sync_engine
    event.listen(engine, "before_cursor_execute", step)
    event.listen(engine, "commit", step)
    return seen


async def main(directory: str, database: str, number: int, what: str) -> None:
    async with State.open(Path(directory), Vault.load(Path(directory)), database) as state:
        seen = die_at(state, number)
        await work(state, what)
        print(seen["statements"])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
