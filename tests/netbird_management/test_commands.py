"""The commands beside `run`, as an operator types them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from netbird_management.cli import app


class Terminal:
    """Runs commands on one settings file."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "management.toml"
        self.config.write_text(f'state_directory = "{directory / "state"}"\n')

    def run(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, list(arguments), env={"NETBIRD_MANAGEMENT_CONFIG": str(self.config)})
        assert result.exit_code == code, result.output
        return result

    def says(self, *arguments: str) -> list[str]:
        return self.run(*arguments).stdout.splitlines()


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    made = Terminal(tmp_path)
    made.run("init", "--email", "owner@lab.test", "--json")
    return made


def test_plugins_are_listed_in_their_order(terminal: Terminal) -> None:
    """With what they claim."""
    lines = terminal.says("plugins")
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        "private_service",
        "direct_upstream",
        "health",
        "access_export",
    ]
    assert "  claims private" in lines


def test_users_are_made_blocked_and_let_in(terminal: Terminal) -> None:
    """Each step shows in the list; a token is printed once."""
    (user_id,) = terminal.says("user", "create", "--email", "alice@lab.test", "--role", "auditor")
    terminal.run("user", "block", user_id)
    assert f"{user_id}  auditor  blocked  alice@lab.test" in terminal.says("user", "list")
    terminal.run("user", "unblock", user_id)
    assert f"{user_id}  auditor  active  alice@lab.test" in terminal.says("user", "list")
    assert terminal.says("user", "token", user_id)[0].startswith("nbp_")
    assert "not found" in terminal.run("user", "block", "nobody", code=1).stderr


def test_the_store_is_migrated_backed_up_and_restored(terminal: Terminal, tmp_path: Path) -> None:
    """A restored store has the same users; a second restore is refused with a sentence."""
    assert [line.split(":")[0] for line in terminal.says("migrate")] == ["accounts", "log"]
    terminal.run("backup", str(tmp_path / "b.gz"))
    assert "is there already" in terminal.run("backup", str(tmp_path / "b.gz"), code=1).stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = Terminal(elsewhere)
    other.run("restore", str(tmp_path / "b.gz"))
    assert other.says("user", "list") == terminal.says("user", "list")
    assert "has a store already" in other.run("restore", str(tmp_path / "b.gz"), code=1).stderr


def test_accounts_are_made_and_listed(terminal: Terminal) -> None:
    """Each with its owner, who gets a token this once; one that the provider names is made once."""
    account_id, token = terminal.says("account", "create", "--email", "boss@acme.test")
    assert token.startswith("nbp_")
    assert [line.split()[2] for line in terminal.says("account", "list")] == ["owner@lab.test", "boss@acme.test"]
    assert account_id in terminal.says("account", "list")[1]
    create = ("account", "create", "--email", "b@acme.test", "--claim", "acme")
    assert "account_claim" in terminal.run(*create, code=2).stderr

    with terminal.config.open("a") as settings:
        settings.write(
            '[oidc]\nissuer = "https://login.lab.test"\nclient_id = "m"\naccount_claim = "org"\n'
            'callback_url = "https://m.lab.test/api/reverse-proxy/callback"\n'
        )
    assert len(terminal.says(*create)) == 2
    assert "already" in terminal.run(*create, code=1).stderr


def test_services_are_listed(terminal: Terminal) -> None:
    """None is no line, in either form."""
    assert terminal.says("service", "list") == []
    assert [json.loads(line) for line in terminal.says("service", "list", "--json")] == []
