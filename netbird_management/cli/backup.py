"""Commands on the whole store: migrate, backup, restore, change-key."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from netbird_management.cli.store import Config, read, without_state
from netbird_management.store.archive import Progress, read_archive, write_archive
from netbird_management.store.engine import open_engines
from netbird_management.store.schema import versions
from netbird_management.store.sealing import change_key


def migrate_store(config: Config = None) -> None:
    """Migrate the store to this version and print its schema versions. A start of the host migrates it too."""
    settings = read(config)[0].value

    async def work() -> list[str]:
        async with open_engines(settings.state_directory, settings.database.get_secret_value()) as engines:
            accounts, log = await versions(engines.accounts), await versions(engines.log, "log")
        return [f"accounts: {accounts[0]}", f"log: {log[0]}"]

    for line in without_state(settings, work, alone=True):
        typer.echo(line)


def backup(
    target: Annotated[Path, typer.Argument(help="File to write; it must not exist.")], config: Config = None
) -> None:
    """Write the whole store and its key to a file. A host may run meanwhile. Protect the file like the store."""
    settings = read(config)[0].value
    with _progress() as progress:
        rows = without_state(
            settings,
            lambda: write_archive(settings.state_directory, settings.database.get_secret_value(), target, progress),
        )
    typer.echo(f"{rows} rows written to {target}")


def restore(source: Annotated[Path, typer.Argument(help="File that `backup` wrote.")], config: Config = None) -> None:
    """Fill an empty store, SQLite or PostgreSQL, from a backup of either."""
    settings = read(config)[0].value
    with _progress() as progress:
        rows = without_state(
            settings,
            lambda: read_archive(source, settings.state_directory, settings.database.get_secret_value(), progress),
        )
    typer.echo(f"{rows} rows restored")


def change_store_key(config: Config = None) -> None:
    """Encrypt every stored secret with a new key. Stop a running host first. Older backups keep the old key."""
    settings = read(config)[0].value
    database = settings.database.get_secret_value()
    count = without_state(settings, lambda: change_key(settings.state_directory, database), alone=True)
    typer.echo(f"{count} secrets encrypted with a new key: make a new backup")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A callback that shows progress bars on a terminal, and nothing elsewhere."""
    console = Console(stderr=True)
    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bars:
        tasks: dict[str, Any] = {}

        def report(table: str, done: int, total: int) -> None:
            if table not in tasks:
                tasks[table] = bars.add_task(table, total=total)
            bars.update(tasks[table], completed=done, total=total)

        yield report
