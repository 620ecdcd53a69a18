"""A store outlives the version that wrote it, and its errors say nothing of what it holds."""

import dataclasses
import logging
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import JSON, Table, insert, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from netbird_management.model.accounts import (
    AccountSettings,
    Nameserver,
    NameserverGroup,
    NetworkResource,
    NetworkRouter,
    PeerMeta,
    PolicyRule,
    ResourceType,
    Zone,
    ZoneRecord,
)
from netbird_management.model.clock import now
from netbird_management.model.services import AccessRestrictions, AuthConfig, BearerAuth, HeaderAuth, SecretAuth, Target
from netbird_management.operations.dns import save_nameservers, save_record, save_zone
from netbird_management.operations.networks import save_network, save_resource, save_router
from netbird_management.operations.proxies import Registration
from netbird_management.operations.services import create_service
from netbird_management.secrets.vault import Vault
from netbird_management.store.archive import read_archive, write_archive
from netbird_management.store.models import Row, UserRow
from netbird_management.store.state import State
from netbird_management.store.stored import decoded
from tests.netbird_management import store_child
from tests.netbird_management.conftest import Home, furnished
from tests.netbird_management.store.test_store import content
from tests.netbird_management.store_child import HOOKS, SENT

JSON_COLUMNS: Final = [
    (table, column) for table in Row.metadata.sorted_tables for column in table.columns if isinstance(column.type, JSON)
]
OPTIONAL: Final = {
    "settings": AccountSettings,
    "meta": PeerMeta,
    "rules": PolicyRule,
    "nameservers": Nameserver,
    "records": ZoneRecord,
    "resources": NetworkResource,
    "routers": NetworkRouter,
    "targets": Target,
    "auth": AuthConfig,
    "restrictions": AccessRestrictions,
}
"""The models that are JSON in a column, by the column."""


async def every_kind(home: Home) -> None:
    """Something in every JSON column that becomes a model."""
    state, account_id, group = home.state, home.account_id, home.snapshot.group_all.id
    await furnished(home)
    given = replace(
        store_child.service(account_id),
        domain="whole.px.test",
        auth=AuthConfig(
            SecretAuth(True, "secret-1"), SecretAuth(), BearerAuth(), (HeaderAuth("x-key", True, "secret-2"),)
        ),
        access_restrictions=AccessRestrictions(allowed_cidrs=("192.0.2.0/24",)),
    )
    await create_service(state, HOOKS, given, SENT)
    await save_nameservers(
        state, account_id, NameserverGroup("", "dns", (Nameserver("192.0.2.53"),), (group,), primary=True)
    )
    zone = await save_zone(state, account_id, Zone("", "zone", "zone.test", (group,)))
    await save_record(state, account_id, zone.id, ZoneRecord("", "a.zone.test", "A", "192.0.2.1", 60))
    network = await save_network(state, account_id, "", name="office", description="")
    await save_resource(
        state, account_id, network.id, NetworkResource("", "r", ResourceType.HOST, "192.0.2.7", (group,))
    )
    await save_router(state, account_id, network.id, NetworkRouter("", 100, True, peer_groups=(group,)))


async def rewrite(home: Home, change: Callable[[str, Any], Any]) -> None:
    """Every JSON column of every row, by a function of the column's name and value."""
    async with home.state.write() as session:
        for table, column in JSON_COLUMNS:
            if table.name == "events":
                continue
            rows = (await session.execute(select(table.c.id, column))).all()
            for id_, value in rows:
                statement = update(table).where(table.c.id == id_).values({column: change(column.name, value)})
                await session.execute(statement)


def _later(_name: str, value: Any) -> Any:
    """As a later version with one field more in every object would have written it."""
    if isinstance(value, list):
        return [_later("", item) for item in value]
    if isinstance(value, dict):
        inner = {name: _later("", item) if name != "extensions" else item for name, item in value.items()}
        return {**inner, "of_a_later_version": {"x": [1]}}
    return value


async def reopened(home: Home, directory: Path, database: str) -> dict[str, Any]:
    async with State.open(directory, Vault.load(directory), database) as state:
        (account,) = state.snapshots.all()
        return content(account)


async def test_fields_of_a_later_version_are_ignored(
    home: Home, proxy: Registration, tmp_path: Path, database: str
) -> None:
    """A store with one more field in every object opens, and holds the same."""
    await every_kind(home)
    before = content(home.snapshot)

    await rewrite(home, lambda name, value: value if name == "extensions" else _later(name, value))

    assert await reopened(home, tmp_path, database) == before


@pytest.mark.usefixtures("written_elsewhere")
async def test_fields_that_an_earlier_version_lacked_get_defaults(
    home: Home, proxy: Registration, tmp_path: Path, database: str
) -> None:
    """A store whose objects lack each field that has a default opens; what has none is in every store there is."""
    await every_kind(home)

    def earlier(name: str, value: Any) -> Any:
        model = OPTIONAL.get(name)
        if model is None:
            return value
        needed = {field.name for field in dataclasses.fields(model) if _is_needed(field)}
        items = value if isinstance(value, list) else [value]
        left = [{name: inner for name, inner in item.items() if name in needed} for item in items]
        return left if isinstance(value, list) else left[0]

    await rewrite(home, earlier)

    async with State.open(tmp_path, Vault.load(tmp_path), database) as state:
        (account,) = state.snapshots.all()
        assert account.account.settings == AccountSettings()
        assert {peer.meta for peer in account.peers.values()} == {PeerMeta()}
        assert {service.auth for service in account.services.values()} == {AuthConfig()}


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def test_new_fields_of_stored_models_have_defaults() -> None:
    """The fields that every store has. One that is added later needs a default, or older stores do not open."""
    needed = {
        name: {field.name for field in dataclasses.fields(model) if _is_needed(field)}
        for name, model in OPTIONAL.items()
    }
    assert needed == {
        "settings": set(),
        "meta": set(),
        "rules": {"id", "name"},
        "nameservers": {"ip"},
        "records": {"id", "name", "type", "content", "ttl"},
        "resources": {"id", "name", "type", "address"},
        "routers": {"id", "metric", "masquerade"},
        "targets": {"target_id", "target_type", "protocol"},
        "auth": set(),
        "restrictions": set(),
    }


def test_what_fits_no_field_is_an_error() -> None:
    """Tolerance is for fields, not for values."""
    with pytest.raises(ValueError, match="peer_login_expiration"):
        decoded(AccountSettings, {"peer_login_expiration": "never"})


SECRET: Final = "credential-0d6f"


@pytest.mark.parametrize(
    "values",
    [
        {"id": None, "email": SECRET},
        {"id": "owner", "email": SECRET},
        {"id": "new", "email": SECRET, "blocked": SECRET},
        {"id": "new", "email": SECRET, "created_at": SECRET},
        {"id": "new", "email": f"{SECRET}\0"},
    ],
    ids=["null", "doubled", "not a bool", "not a moment", "nul"],
)
async def test_promise_5_a_failing_statement_names_none_of_its_values(home: Home, values: dict[str, Any]) -> None:
    """Neither the error, nor its cause, nor the traceback that a log would hold quotes a parameter."""
    if values["id"] == "owner":
        values = {**values, "id": home.owner.id}
    whole = {"account_id": home.account_id, "role": "user", "auto_groups": [], "created_at": now(), **values}
    table = UserRow.__table__
    assert isinstance(table, Table)
    with pytest.raises((SQLAlchemyError, ValueError, TypeError)) as caught:  # noqa: PT012 - which one fails differs
        async with home.state.write() as session:
            await session.execute(insert(table).values(whole))
            await session.execute(text("SELECT * FROM nothing_of_the_kind WHERE x = :secret"), {"secret": SECRET})
    error = caught.value
    assert SECRET not in "".join(traceback.format_exception(error))
    record = logging.LogRecord("t", logging.ERROR, "", 0, "failed", (), (type(error), error, error.__traceback__))
    assert SECRET not in logging.Formatter().format(record)


async def test_a_backup_leaves_other_programs_tables(
    home: Home, proxy: Registration, tmp_path: Path, database: str, other_database: str
) -> None:
    """A database that is shared with another program is backed up as ours alone, and the backup restores."""
    await furnished(home)
    async with home.state.write() as session:
        await session.execute(text("CREATE TABLE strangers (id integer PRIMARY KEY, secret text)"))
        await session.execute(text("INSERT INTO strangers VALUES (1, 'theirs')"))
    file, other = tmp_path / "backup.gz", tmp_path / "other"
    names: list[str] = []

    await write_archive(tmp_path, database, file, lambda table, done, total: names.append(table))
    assert "strangers" not in names
    await read_archive(file, other, other_database)

    assert await reopened(home, other, other_database) == content(home.snapshot)
