"""A process that is killed between any two statements of a write leaves all of it or none, on both stores.

By default one statement of each write is tried, chosen by a seed, besides the commit; `make kills` tries every one.
"""

import asyncio
import base64
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc.aio
import pytest
from sqlalchemy import select

from netbird_management.model.accounts import PeerMeta
from netbird_management.operations.peers import enroll_by_user
from netbird_management.operations.proxies import Registration
from netbird_management.operations.setup_keys import create_setup_key
from netbird_management.operations.users import create_token
from netbird_management.secrets.vault import Vault
from netbird_management.store.engine import DATABASE_FILE, LOG_FILE, open_engine
from netbird_management.store.models import LogRow, Row
from netbird_management.store.state import State
from netbird_wire.proxy_service_pb2 import AccessLog, SendAccessLogRequest, SyncMappingsInit, SyncMappingsRequest
from netbird_wire.proxy_service_pb2_grpc import ProxyServiceStub
from tests.netbird_management.cli.test_process import environment, program, running
from tests.netbird_management.conftest import Home, furnished

__all__ = ["environment"]
KILLED: Final = -9
EVERY: Final = os.environ.get("NETBIRD_TEST_KILLS") == "every"
SAMPLE: Final = 1
SEED: Final = int(os.environ.get("NETBIRD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
EVENTS: Final = {"accounts", "events"}
"""A change of an account has its number and its event."""
WRITES: Final[dict[str, set[str]]] = {
    "group": {"groups", "group_peers", *EVENTS},
    "group changed": {"groups", "group_peers", *EVENTS},
    "group gone": {"groups", *EVENTS},
    "peer": {"peers", "group_peers", *EVENTS},
    "peer gone": {"peers", "group_peers", *EVENTS},
    "user": {"users", *EVENTS},
    "user blocked": {"users", "group_peers", "revocations", *EVENTS},
    "user gone": {"users", "peers", "group_peers", "personal_access_tokens", "revocations", *EVENTS},
    "service": {"services", *EVENTS},
    "service changed": {"services", *EVENTS},
    "service gone": {"services", *EVENTS},
    "one-time token": {"peers", "spent_nonces", "accounts"},
    "setup key used": {"peers", "group_peers", "setup_keys", *EVENTS},
    "peer by login": {"peers", "group_peers", *EVENTS},
    "login expired": {"peers", *EVENTS},
    "session over": {"revocations", "accounts"},
    "token": {"personal_access_tokens", *EVENTS},
    "token used": {"personal_access_tokens"},
    "account": {"users", "groups", "policies", *EVENTS},
    "account gone": {
        *("users", "groups", "peers", "group_peers", "policies", "services", "setup_keys", "personal_access_tokens"),
        *EVENTS,
    },
    "access log": {"access_log"},
}
"""What a write changes, each the whole of it: these tables and no other."""

Rows = dict[str, set[str]]


async def stored(directory: Path, database: str) -> Rows:
    """Every row of every table."""
    found: Rows = {}
    for file, metadata in ((DATABASE_FILE, Row.metadata), (LOG_FILE, LogRow.metadata)):
        engine = open_engine(database or directory / file)
        async with engine.connect() as connection:
            for table in metadata.sorted_tables:
                rows = await connection.execute(select(table))
                found[table.name] = {json.dumps(dict(row), sort_keys=True, default=repr) for row in rows.mappings()}
        await engine.dispose()
    return found


def changed(before: Rows, after: Rows) -> set[str]:
    return {table for table, rows in after.items() if rows != before[table]}


class Child:
    """The process whose forks are killed."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    async def run(self, **job: Any) -> tuple[int, int]:
        """How it ended, and how many statements it had begun."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(await asyncio.wait_for(asyncio.to_thread(self._process.stdout.readline), 50))
        return answer["status"], answer["statements"]


@pytest.fixture(scope="session")
def child() -> Iterator[Child]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.netbird_management.store_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as process:
        yield Child(process)
        process.kill()


@pytest.fixture
async def given(home: Home, proxy: Registration) -> dict[str, str]:
    """Something of everything that the writes change, and the secrets that they need."""
    user = await furnished(home)
    _, key = await create_setup_key(
        home.state, home.account_id, name="key", kind="reusable", expires_in=0, auto_groups=[], usage_limit=0
    )
    await enroll_by_user(
        home.state, user, key=base64.b64encode(bytes(32)).decode(), hostname="laptop", meta=PeerMeta(), ssh_key=""
    )
    _, token = await create_token(home.state, user, name="token", days=1, created_by=user.id)
    return {"setup_key": key, "token": token}


@pytest.mark.timeout(600 if EVERY else 60)
@pytest.mark.parametrize("what", WRITES)
@pytest.mark.usefixtures("written_elsewhere")
async def test_a_killed_write_is_there_wholly_or_not_at_all(
    given: dict[str, str], tmp_path: Path, database: str, what: str, child: Child
) -> None:
    """Killed before any statement, or before the commit: every table is as it was. Killed after it: nothing lacks."""
    job = {"directory": str(tmp_path), "database": database, "what": what, "given": given}
    before = await stored(tmp_path, database)
    status, statements = await child.run(**job, at="commit")
    assert status == KILLED
    assert statements > 0
    assert changed(before, await stored(tmp_path, database)) == set(), "killed before the commit"
    numbers = range(1, statements + 1)
    chosen = numbers if EVERY else random.Random(SEED).sample(numbers, min(SAMPLE, statements))
    for number in chosen:
        status, _ = await child.run(**job, at=number)
        assert status == KILLED, f"seed {SEED}, statement {number}"
        assert changed(before, await stored(tmp_path, database)) == set(), f"seed {SEED}, statement {number}"
    status, _ = await child.run(**job, at="committed")
    assert status == KILLED
    after = await stored(tmp_path, database)
    assert changed(before, after) == WRITES[what]
    _check_number(what, before, after)
    async with State.open(tmp_path, Vault.load(tmp_path), database) as state:
        assert len(state.snapshots.all()) == len(after["accounts"])


def _check_number(what: str, before: Rows, after: Rows) -> None:
    """The change of an account raises its number by one, and its new events carry that number."""
    if what in ("account", "account gone") or "accounts" not in WRITES[what]:
        return
    [old], [new] = ([json.loads(row) for row in rows["accounts"]] for rows in (before, after))
    assert new["changes"] == old["changes"] + 1
    events = [json.loads(row) for row in after["events"] - before["events"]]
    assert {event["number"] for event in events} == ({new["changes"]} if "events" in WRITES[what] else set())


async def test_a_killed_host_loses_no_more_than_a_second_of_the_log(
    tmp_path: Path, database: str, environment: dict[str, str]
) -> None:
    """Entries are answered before they are stored; those that were answered a second before the kill are there."""
    config = tmp_path / "management.toml"
    config.write_text(
        f'state_directory = "{tmp_path / "state"}"\ndatabase = "{database}"\n'
        '[rest]\nlisten = "127.0.0.1:0"\n[grpc]\nlisten = "127.0.0.1:0"\n'
    )
    _, out, _ = await program("init", "--email", "a@b.test", "--proxy-token", "p", "--json", config=config)
    made = json.loads(out)
    metadata = (("authorization", f"Bearer {made['proxy_token']}"), ("x-netbird-proxy-id", "proxy-1"))
    answered: dict[str, float] = {}
    async with running(config, environment) as (process, told), grpc.aio.insecure_channel(told["grpc"]) as channel:
        stub = ProxyServiceStub(channel)
        stream = stub.SyncMappings(metadata=metadata, timeout=50)
        init = SyncMappingsInit(proxy_id="proxy-1", address="px.test")
        await stream.write(SyncMappingsRequest(init=init))
        await stream.read()
        began = time.monotonic()
        while time.monotonic() < began + 2:
            id_ = str(len(answered))
            log = AccessLog(log_id=id_, account_id=made["account_id"], host="app.px.test", path="/", method="GET")
            await stub.SendAccessLog(SendAccessLogRequest(logs=[log]), metadata=metadata, timeout=20)
            answered[id_] = time.monotonic()
            await asyncio.sleep(0.01)
        killed = time.monotonic()
        process.kill()
    rows = await stored(tmp_path / "state", database)
    there = {json.loads(row)["id"] for row in rows["access_log"]}
    owed = {id_ for id_, when in answered.items() if when <= killed - 1}
    assert owed
    assert owed <= there
