"""A state on a real database file, with one account in it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from netbird_management.ids import AccountId
from netbird_management.network.accounts import create_account
from netbird_management.network.model import User
from netbird_management.network.snapshot import AccountSnapshot
from netbird_management.state import State
from netbird_management.store.vault import Vault


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


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[State]:
    async with State.open(tmp_path, Vault.create(tmp_path)) as opened:
        yield opened


@pytest.fixture
async def home(state: State) -> Home:
    account_id, owner = await create_account(state, email="admin@lab.test", name="Admin")
    return Home(state, account_id, owner)
