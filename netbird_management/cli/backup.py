"""The commands on the whole store: migrate, backup, restore, change-key."""

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
    """Bring the store to this version. A start does it as well; this tells what it did."""
    settings = read(config)[0].value

    async def work() -> list[str]:
        async with open_engines(settings.state_directory, settings.database.get_secret_value()) as engines:
            accounts, log = await versions(engines.accounts), await versions(engines.log, "log")
        return [f"accounts: {accounts[0]}", f"log: {log[0]}"]

    for line in without_state(settings, work, alone=True):
        typer.echo(line)


def backup(
    target: Annotated[Path, typer.Argument(help="The file, which must not be there yet.")], config: Config = None
) -> None:
    """Write the whole store with its key to a file, also while a host runs. Guard the file like the store."""
    settings = read(config)[0].value
    with _progress() as progress:
        rows = without_state(
            settings,
            lambda: write_archive(settings.state_directory, settings.database.get_secret_value(), target, progress),
        )
    typer.echo(f"{rows} rows in {target}")


def restore(source: Annotated[Path, typer.Argument(help="What `backup` wrote.")], config: Config = None) -> None:
    """Fill an empty store from a backup, of either kind of database."""
    settings = read(config)[0].value
    with _progress() as progress:
        rows = without_state(
            settings,
            lambda: read_archive(source, settings.state_directory, settings.database.get_secret_value(), progress),
        )
    typer.echo(f"{rows} rows restored")


def change_store_key(config: Config = None) -> None:
    """Seal every stored secret with a new key. Stop a running host first; older backups keep the key they have."""
    settings = read(config)[0].value
    database = settings.database.get_secret_value()
    count = without_state(settings, lambda: change_key(settings.state_directory, database), alone=True)
    typer.echo(f"{count} secrets sealed with a new key: make a backup")


@contextmanager
def _progress() -> Iterator[Progress]:
    """Bars on a terminal, nothing elsewhere."""
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
