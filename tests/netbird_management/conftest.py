"""A state on a real database file, with one account in it."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from netbird_management.ids import AccountId, ProxyId
from netbird_management.network.accounts import create_account
from netbird_management.network.model import User
from netbird_management.network.snapshot import AccountSnapshot
from netbird_management.network.users import create_token
from netbird_management.plugins import load_hooks
from netbird_management.rest.app import create_app
from netbird_management.rest.context import Context
from netbird_management.services.model import Capabilities
from netbird_management.services.proxies import Registration, register_proxy
from netbird_management.state import State
from netbird_management.store.engine import migrate, open_engine
from netbird_management.store.vault import Vault
from tests import postgresql as postgresql_server


@dataclass(frozen=True)
class Home:
    """The account that tests live in, and its owner."""

    state: State
    account_id: AccountId
    owner: User

    @property
    def snapshot(self) -> AccountSnapshot:
        found = self.state.snapshots.get(self.account_id)
        assert found is not None
        return found


STORES = os.environ.get("NETBIRD_TEST_STORES", "sqlite").split(",")
"""Every test that has a store runs on each of these: `sqlite`, `postgresql`."""
_databases = itertools.count()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgresql_server.Server]:
    """One server with a database `template` that is migrated already."""
    with postgresql_server.server() as server:
        with ThreadPoolExecutor(1) as elsewhere:  # a loop runs here already
            elsewhere.submit(asyncio.run, _prepare(server)).result()
        yield server


async def _prepare(server: postgresql_server.Server) -> None:
    await create_database(server, "template", "template1")
    engine = open_engine(server.url("template"))
    await migrate(engine, "accounts")
    await migrate(engine, "log")
    await engine.dispose()


async def create_database(server: postgresql_server.Server, name: str, template: str) -> None:
    connection = await asyncpg.connect(server.url("postgres"))
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    finally:
        await connection.close()


@pytest.fixture(params=STORES)
async def database(request: pytest.FixtureRequest) -> str:
    """What `State.open` takes for a new, empty store: "" is SQLite's files in the state directory."""
    if request.param == "sqlite":
        return ""
    server = request.getfixturevalue("postgresql")
    name = f"test_{next(_databases)}"
    await create_database(server, name, "template")
    return str(server.url(name))


@pytest.fixture
async def state(tmp_path: Path, database: str) -> AsyncIterator[State]:
    async with State.open(tmp_path, Vault.create(tmp_path), database) as opened:
        yield opened


@pytest.fixture
async def home(state: State) -> Home:
    account_id, owner = await create_account(state, email="admin@lab.test", name="Admin")
    return Home(state, account_id, owner)


@dataclass(frozen=True)
class Api:
    """The API as a client sees it, called as the owner unless a test says otherwise."""

    client: httpx.AsyncClient
    home: Home

    async def call(self, method: str, path: str, body: object = None, **options: Any) -> httpx.Response:
        return await self.client.request(method, path, json=body, **options)

    async def ok(self, method: str, path: str, body: object = None, **options: Any) -> Any:
        answer = await self.call(method, path, body, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refused(self, method: str, path: str, body: object = None, **options: Any) -> tuple[int, str]:
        answer = await self.call(method, path, body, **options)
        assert answer.status_code >= 400, answer.text
        assert answer.json()["code"] == answer.status_code
        return answer.status_code, answer.json()["message"]


@pytest.fixture
async def proxy(home: Home) -> Registration:
    """A shared proxy that serves px.test and can do everything."""
    registration = Registration(
        proxy_id=ProxyId("proxy-1"),
        session_id="session-1",
        cluster="px.test",
        ip_address="127.0.0.1",
        account_id=None,
        token_id=None,
        capabilities=Capabilities(True, False, False, True, True),
    )
    await register_proxy(home.state, registration)
    return registration


def context_for(home: Home, **options: Any) -> Context:
    return Context(home.state, load_hooks(["private_service", "direct_upstream"]), **options)


@pytest.fixture
async def api(home: Home) -> AsyncIterator[Api]:
    _, token = await create_token(home.state, home.owner, name="test", days=1, created_by=home.owner.id)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(context_for(home))),
        base_url="http://localhost",
        headers={"authorization": f"Token {token}"},
    ) as client:
        yield Api(client, home)
