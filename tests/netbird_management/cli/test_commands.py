"""The commands beside `run`, as an operator types them."""

import asyncio
import fcntl
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from netbird_management.cli import app
from netbird_management.store.engine import open_engines
from netbird_management.store.holding import LOCK_FILE
from netbird_management.store.schema import migrate


class Terminal:
    """Runs commands on one settings file."""

    def __init__(self, directory: Path, database: str = "") -> None:
        self.state = directory / "state"
        self.config = directory / "management.toml"
        self.config.write_text(f'state_directory = "{self.state}"\ndatabase = "{database}"\n')

    def run(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, list(arguments), env={"NETBIRD_MANAGEMENT_CONFIG": str(self.config)})
        assert result.exit_code == code, result.output
        return result

    def says(self, *arguments: str) -> list[str]:
        return self.run(*arguments).stdout.splitlines()


@pytest.fixture
def terminal(tmp_path: Path, database: str) -> Terminal:
    made = Terminal(tmp_path, database)
    made.run("init", "--email", "owner@lab.test", "--json")
    return made


def test_plugins_are_listed_in_their_order(terminal: Terminal) -> None:
    """With what they claim, and what their sections say and why."""
    lines = terminal.says("plugins")
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        "private_service",
        "direct_upstream",
        "signal_server",
        "relay",
        "health",
        "access_export",
    ]
    assert "  claims private" in lines
    assert lines[lines.index("  [access_export]") + 1] == "  file = unset  # default"


def test_users_are_made_blocked_and_let_in(terminal: Terminal) -> None:
    """Each step shows in the list; a token is printed once."""
    (user_id,) = terminal.says("user", "create", "--email", "alice@lab.test", "--role", "auditor")
    terminal.run("user", "block", user_id)
    assert f"{user_id}  auditor  blocked  alice@lab.test" in terminal.says("user", "list")
    terminal.run("user", "unblock", user_id)
    assert f"{user_id}  auditor  active  alice@lab.test" in terminal.says("user", "list")
    assert terminal.says("user", "token", user_id)[0].startswith("nbp_")
    assert "not found" in terminal.run("user", "block", "nobody", code=1).stderr


def test_the_store_is_migrated_backed_up_and_restored(terminal: Terminal, tmp_path: Path, other_database: str) -> None:
    """A restored store has the same users; a second restore is refused with a sentence."""
    assert [line.split(":")[0] for line in terminal.says("migrate")] == ["accounts", "log"]
    terminal.run("backup", str(tmp_path / "b.gz"))
    assert "already exists" in terminal.run("backup", str(tmp_path / "b.gz"), code=1).stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = Terminal(elsewhere, other_database)
    other.run("restore", str(tmp_path / "b.gz"))
    assert other.says("user", "list") == terminal.says("user", "list")
    assert "already contains a store" in other.run("restore", str(tmp_path / "b.gz"), code=1).stderr


def test_the_key_is_changed(terminal: Terminal) -> None:
    """The store goes on with another; the one before is told to be wrong."""
    before = (terminal.state / "store.key").read_bytes()
    users = terminal.says("user", "list")
    terminal.run("change-key")
    assert terminal.says("user", "list") == users
    (terminal.state / "store.key").write_bytes(before)
    assert "not the key" in terminal.run("user", "list", code=1).stderr


def test_no_command_migrates_under_a_running_host(terminal: Terminal, database: str) -> None:
    """It may be of an earlier version. A backup is taken as the store is, and what it restores is of this version."""

    async def back() -> None:
        async with open_engines(terminal.state, database) as engines:
            await migrate(engines.accounts, revision="0008")

    asyncio.run(back())
    with (terminal.state / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use" in terminal.run("user", "list", code=1).stderr
        assert "in use" in terminal.run("migrate", code=1).stderr
        terminal.run("backup", str(terminal.state / "b.gz"))
        assert "in use" in terminal.run("user", "list", code=1).stderr
    assert len(terminal.says("user", "list")) == 1


def test_services_are_listed(terminal: Terminal) -> None:
    """None is no line, in either form."""
    assert terminal.says("service", "list") == []
    assert [json.loads(line) for line in terminal.says("service", "list", "--json")] == []
