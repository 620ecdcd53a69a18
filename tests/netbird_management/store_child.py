"""Makes changes on a store and dies in the middle; run by `test_kills`.

A job is a line of JSON on standard input: `directory`, `database` ("" for files), `what`, `given` (what it needs to
know), and `at`: the statement to die before, `commit` for the first commit, `committed` for right after it.
Each is done by a fork, as what costs most is to start; the answer is its exit status and how many statements it began.
"""

import asyncio
import base64
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.orm import Session

from netbird_management.model.accounts import PeerMeta, Role
from netbird_management.model.clock import now
from netbird_management.model.ids import AccountId, GroupId
from netbird_management.model.services import AccessLogEntry, Service, ServiceMeta, Target, TargetOptions, TargetType
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.account_settings import delete_account
from netbird_management.operations.accounts import create_account
from netbird_management.operations.groups import create_group, delete_group, update_group
from netbird_management.operations.peers import (
    create_proxy_peer,
    create_stock_peer,
    delete_peer,
    enroll_by_user,
    set_login_expired,
)
from netbird_management.operations.revocations import revoke
from netbird_management.operations.services import create_service, delete_service, update_service
from netbird_management.operations.setup_keys import enroll
from netbird_management.operations.users import create_token, create_user, delete_user, update_user, user_of_token
from netbird_management.plugins.hooks import load_hooks
from netbird_management.secrets.one_time import mint, verify
from netbird_management.secrets.vault import Vault
from netbird_management.store.state import State
from tests.netbird_management.reports import add_access_log_entries

SENT: Final = frozenset({"private", "access_groups"})
HOOKS: Final = load_hooks(["private_service", "direct_upstream"])
SECONDS: Final = 40
"""How long a job may take; then it ends by SIGALRM, which no test takes for a kill."""


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


def entry(account_id: AccountId, id_: str = "1") -> AccessLogEntry:
    return AccessLogEntry(
        id=id_,
        account_id=account_id,
        service_id="s",
        timestamp=now(),
        source_ip="192.0.2.1",
        method="GET",
        host="h",
        path="/",
        duration_ms=1,
        status_code=200,
        bytes_upload=0,
        bytes_download=1,
    )


@dataclass(frozen=True)
class Job:
    """What a write finds: the store, its only account, and what the parent gave."""

    state: State
    account: AccountSnapshot
    given: dict[str, str]

    @property
    def account_id(self) -> AccountId:
        return self.account.account.id

    @property
    def user(self) -> Any:
        return next(user for user in self.account.users.values() if user.role is Role.USER)

    @property
    def group(self) -> Any:
        return next(group for group in self.account.groups.values() if group.name == "engineering")

    @property
    def peer(self) -> Any:
        return next(iter(self.account.peers.values()))

    @property
    def service(self) -> Any:
        return next(iter(self.account.services.values()))


async def _group(job: Job) -> None:
    await create_group(job.state, job.account_id, name="made", peers=list(job.account.peers))


async def _group_changed(job: Job) -> None:
    await update_group(job.state, job.account_id, job.group.id, name="renamed", peers=list(job.account.peers))


async def _group_gone(job: Job) -> None:
    await delete_group(job.state, job.account_id, job.group.id)


async def _peer(job: Job) -> None:
    await create_stock_peer(job.state, job.account_id, name="made", user_id=None)


async def _peer_gone(job: Job) -> None:
    await delete_peer(job.state, job.account_id, job.peer.id)


async def _user_blocked(job: Job) -> None:
    groups = [GroupId(job.group.id)]
    await update_user(job.state, job.account_id, job.user.id, role=Role.ADMIN, auto_groups=groups, blocked=True)


async def _user_gone(job: Job) -> None:
    await delete_user(job.state, job.account_id, job.user.id)


async def _new_user(job: Job) -> None:
    await create_user(job.state, job.account_id, role=Role.USER, email="made@lab.test")


async def _service(job: Job) -> None:
    await create_service(job.state, HOOKS, service(job.account_id), SENT)


async def _service_changed(job: Job) -> None:
    given = service(job.account_id, id_=job.service.id, port=9999)
    await update_service(job.state, HOOKS, given, SENT, confirm_public=True)


async def _service_gone(job: Job) -> None:
    await delete_service(job.state, job.account_id, job.service.id)


async def _one_time_token(job: Job) -> None:
    token = mint(job.state.vault, job.account_id, job.service.id, "token")
    verified = verify(job.state.vault, token, job.account_id, job.service.id, "token")
    key = base64.b64encode(os.urandom(32)).decode()
    await create_proxy_peer(job.state, job.account_id, key=key, cluster="px.test", token=verified)


async def _setup_key(job: Job) -> None:
    key = base64.b64encode(os.urandom(32)).decode()
    await enroll(job.state, job.given["setup_key"], key=key, hostname="machine", meta=PeerMeta(hostname="machine"))


async def _peer_by_login(job: Job) -> None:
    key = base64.b64encode(os.urandom(32)).decode()
    await enroll_by_user(job.state, job.user, key=key, hostname="machine", meta=PeerMeta(), ssh_key="")


async def _login_expired(job: Job) -> None:
    await set_login_expired(job.state, job.account_id, now() + timedelta(days=2))


async def _session_over(job: Job) -> None:
    async with job.state.change(job.account_id) as transaction:
        await revoke(transaction, token_hash=bytes(32))


async def _token_made(job: Job) -> None:
    await create_token(job.state, job.user, name="made", days=1, created_by=job.user.id)


async def _token_used(job: Job) -> None:
    await user_of_token(job.state, job.given["token"])


async def _account(job: Job) -> None:
    await create_account(job.state, email="other@lab.test", name="Other")


async def _account_gone(job: Job) -> None:
    await delete_account(job.state, job.account_id)


async def _access_log(job: Job) -> None:
    await add_access_log_entries(job.state, [entry(job.account_id, f"made-{number}") for number in range(50)])


WRITES: Final[dict[str, Callable[[Job], Any]]] = {
    "group": _group,
    "group changed": _group_changed,
    "group gone": _group_gone,
    "peer": _peer,
    "peer gone": _peer_gone,
    "user": _new_user,
    "user blocked": _user_blocked,
    "user gone": _user_gone,
    "service": _service,
    "service changed": _service_changed,
    "service gone": _service_gone,
    "one-time token": _one_time_token,
    "setup key used": _setup_key,
    "peer by login": _peer_by_login,
    "login expired": _login_expired,
    "session over": _session_over,
    "token": _token_made,
    "token used": _token_used,
    "account": _account,
    "account gone": _account_gone,
    "access log": _access_log,
}


class Fate:
    """Counts statements, and ends the process at one of them."""

    def __init__(self, at: int | str, report: int) -> None:
        self._at = at
        self._report = report
        self._statements = 0

    def watch(self, state: State) -> None:
        for engine in {state._engine.sync_engine, state._log.sync_engine}:
            event.listen(engine, "before_cursor_execute", self._statement)
            event.listen(engine, "commit", lambda _: self._reached("commit"))
        event.listen(Session, "after_commit", lambda _: self._reached("committed"))

    def tell(self) -> None:
        os.write(self._report, str(self._statements).encode())

    def _statement(self, *_: object) -> None:
        self._statements += 1
        self._reached(self._statements)

    def _reached(self, point: int | str) -> None:
        if point == self._at:
            self.tell()
            os.kill(os.getpid(), signal.SIGKILL)


async def work(directory: str, database: str, what: str, given: dict[str, str], fate: Fate) -> None:
    async with State.open(Path(directory), Vault.load(Path(directory)), database) as state:
        job = Job(state, state.snapshots.all()[0], given)
        fate.watch(state)
        await WRITES[what](job)
    fate.tell()


def fork(job: dict[str, Any]) -> dict[str, int]:
    """Does a job in a process of its own."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        signal.alarm(SECONDS)
        try:
            asyncio.run(work(fate=Fate(job.pop("at"), writing), **job))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        statements = int(pipe.read() or -1)
    _, status = os.waitpid(process, 0)
    return {"status": os.waitstatus_to_exitcode(status), "statements": statements}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(fork(json.loads(line))), flush=True)
