"""A state on a real database file, with one account in it."""

import asyncio
import base64
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from netbird_management.compute.network_map import NetworkMaps
from netbird_management.model.accounts import Role, User
from netbird_management.model.clock import now
from netbird_management.model.ids import AccountId, ProxyId, new_id
from netbird_management.model.services import Capabilities
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.accounts import create_account
from netbird_management.operations.groups import create_group
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.proxies import Registration, register_proxy
from netbird_management.operations.services import create_service
from netbird_management.operations.users import create_token, create_user
from netbird_management.rest.app import create_app
from netbird_management.rest.context import Context
from netbird_management.secrets.vault import Vault
from netbird_management.store.engine import DATABASE_FILE, LOG_FILE, open_engine, open_engines
from netbird_management.store.models import DomainRow
from netbird_management.store.state import State
from tests.netbird_management.store_child import HOOKS, SENT, service
from tests.postgresql import Server, server


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


def claims_in(token: str) -> dict[str, Any]:
    """The claims of a token that something else has verified."""
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


async def proved_domain(state: State, account_id: AccountId, domain: str, target_cluster: str = "") -> None:
    """A custom domain of the account that DNS has shown the proof of."""
    async with state.change(account_id) as transaction:
        target, moment = target_cluster or domain, now()
        row = DomainRow(
            id=new_id(),
            account_id=account_id,
            domain=domain,
            target_cluster=target,
            validated=True,
            created_at=moment,
            proved_at=moment,
        )
        transaction.session.add(row)
        transaction.touch(domains=True)


STORES = os.environ.get("NETBIRD_TEST_STORES", "sqlite").split(",")
"""Every test that has a store runs on each of these: `sqlite`, `postgresql`."""
TEMPLATE = "template"
_databases = itertools.count()


def _elsewhere(work: Coroutine[Any, Any, None]) -> None:
    """Done by a loop of its own: where fixtures of the session are made, one runs already."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """One server with a database that is migrated already; each test gets a copy."""
    with server() as running:
        _elsewhere(_prepare(running))
        yield running


async def _prepare(running: Server) -> None:
    async with open_engines(Path(), await running.create(TEMPLATE)):
        pass


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with SQLite files that are migrated already; each test gets copies."""
    directory = tmp_path_factory.mktemp(TEMPLATE)
    _elsewhere(_fill(directory))
    return directory


@pytest.fixture
def empty_store(tmp_path: Path, migrated: Path) -> Path:
    """A state directory with an empty store, whose migrations a start need not run."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    for name in (DATABASE_FILE, LOG_FILE):
        shutil.copy(migrated / name, directory / name)
    Vault.create(directory)
    return directory


async def _fill(directory: Path) -> None:
    async with open_engines(directory):
        pass


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is for another store than those asked for is left out, and what has none is played with SQLite only."""
    apart = [item for item in items if _store_of(item) not in STORES]
    config.hook.pytest_deselected(items=apart)
    items[:] = [item for item in items if item not in set(apart)]


def _store_of(item: pytest.Item) -> str:
    if "postgresql" in getattr(item, "fixturenames", ()):
        return "postgresql"
    call = getattr(item, "callspec", None)
    return str(call.params.get("database", "sqlite")) if call is not None else "sqlite"


@pytest.fixture(params=STORES)
async def database(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """What `State.open` takes for a new, empty store: "" is SQLite's files in the state directory."""
    if request.param == "sqlite":
        yield ""
        return
    running: Server = request.getfixturevalue("postgresql")
    name = f"test_{next(_databases)}"
    yield await running.create(name, template=TEMPLATE)
    await running.drop(name)


@pytest.fixture
async def other_database(request: pytest.FixtureRequest, database: str) -> AsyncIterator[str]:
    """Another store of the same kind, which nobody has opened yet."""
    if not database:
        yield ""
        return
    running: Server = request.getfixturevalue("postgresql")
    name = f"test_{next(_databases)}"
    yield await running.create(name)
    await running.drop(name)


@pytest.fixture
def away(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> Callable[[], AbstractAsyncContextManager[None]]:
    """Makes the log refuse what it is asked, for as long as one is in it."""
    if database:
        running: Server = request.getfixturevalue("postgresql")
        return lambda: running.away(database.partition("?")[0].rpartition("/")[2])

    @asynccontextmanager
    async def renamed() -> AsyncIterator[None]:
        engine = open_engine(tmp_path / LOG_FILE)
        async with engine.connect() as connection:
            await connection.execute(text("ALTER TABLE access_log RENAME TO access_log_away"))
            await connection.commit()
            yield
            await connection.execute(text("ALTER TABLE access_log_away RENAME TO access_log"))
            await connection.commit()
        await engine.dispose()

    return renamed


@pytest.fixture
def written_elsewhere() -> None:
    """Requested by a test that writes the store behind the state's back, or seals it with another key."""


@pytest.fixture
async def state(request: pytest.FixtureRequest, tmp_path: Path, database: str, migrated: Path) -> AsyncIterator[State]:
    """At the end of each test, the snapshots must be those that a start would read: each change names what it wrote."""
    if not database:
        for name in (DATABASE_FILE, LOG_FILE):
            shutil.copy(migrated / name, tmp_path / name)
    vault = Vault.create(tmp_path)
    async with State.open(tmp_path, vault, database) as opened:
        yield opened
    # The closed state has done the work of cancelled callers to its end.
    if "written_elsewhere" not in request.fixturenames:
        async with State.open(tmp_path, vault, database) as reopened:
            assert _facts(opened) == _facts(reopened), "a change did not touch all that it wrote"


def _facts(state: State) -> dict[AccountId, dict[str, Any]]:
    """The accounts' parts that the store holds; the rest of a snapshot follows from them. Stores order rows as they
    like."""
    return {
        snapshot.account.id: {
            "account": snapshot.account,
            "users": snapshot.users,
            "groups": snapshot.groups,
            "peers": snapshot.peers,
            "services": snapshot.services,
            "policies": snapshot.policies,
            "custom domains": sorted(snapshot.custom_domains, key=repr),
            "nameservers": sorted(snapshot.dns.nameservers, key=repr),
            "zones": sorted(snapshot.dns.zones, key=repr),
            "networks": snapshot.networks,
            "revocations": snapshot.revocations,
        }
        for snapshot in state.snapshots.all()
    }


@pytest.fixture
async def home(state: State) -> Home:
    account_id, owner = await create_account(state, email="admin@lab.test", name="Admin")
    return Home(state, account_id, owner)


async def furnished(home: Home) -> User:
    """Something of everything that accounts are made of; the user who is not its owner."""
    state, account_id = home.state, home.account_id
    user = await create_user(state, account_id, role=Role.USER, email="alice@lab.test")
    await create_stock_peer(state, account_id, name="phone", user_id=user.id)
    await create_group(state, account_id, name="engineering")
    await create_service(state, HOOKS, service(account_id, id_="old"), SENT)
    return user


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
    return Context(home.state, HOOKS, NetworkMaps(HOOKS), **options)


@pytest.fixture
async def api(home: Home) -> AsyncIterator[Api]:
    _, token = await create_token(home.state, home.owner, name="test", days=1, created_by=home.owner.id)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(context_for(home))),
        base_url="http://localhost",
        headers={"authorization": f"Token {token}"},
    ) as client:
        yield Api(client, home)
