"""Access to the settings and the store for every command, and the exit with an error."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from netbird_host.plugins import PluginError
from netbird_host.settings import Settings, SettingsError
from netbird_management.model.errors import ManagementError
from netbird_management.model.store_errors import StoreError
from netbird_management.plugins.hooks import Hooks
from netbird_management.settings import CONFIG_VARIABLE, ManagementSettings, read_settings
from netbird_management.store.directory import prepare_directory
from netbird_management.store.engine import is_outdated
from netbird_management.store.holding import locked_store
from netbird_management.store.state import State

T = TypeVar("T")
Config = Annotated[Path | None, typer.Option("--config", "-c", envvar=CONFIG_VARIABLE, help="Settings file (TOML).")]


def read(config: Path | None, *, files: bool = False) -> tuple[Settings[ManagementSettings], Hooks]:
    """The validated settings with their plugins; `files` also validates the certificate files they name."""
    try:
        settings, hooks = read_settings(config)
        if files:
            settings.value.rest.judge("rest")
            settings.value.grpc.judge("grpc")
        return settings, hooks
    except (SettingsError, PluginError) as error:
        stop(error)


def with_state(settings: ManagementSettings, work: Callable[[State], Awaitable[T]], *, alone: bool = False) -> T:
    """Runs `work` on the store. `alone` requires that no host runs, as a running host would not see changed accounts.

    A store that needs a migration also requires it: a host of an earlier version may use the store.
    """
    directory, database = settings.state_directory, settings.database.get_secret_value()

    async def opened() -> T:
        vault = prepare_directory(directory)
        async with (
            locked_store(directory, database) if alone or await is_outdated(directory, database) else nullcontext(),
            State.open(directory, vault, database) as state,
        ):
            return await work(state)

    return _done(opened())


def without_state(settings: ManagementSettings, work: Callable[[], Awaitable[T]], *, alone: bool = False) -> T:
    """Runs `work` as `with_state` does, without opening the store."""

    async def locked() -> T:
        if not alone:
            return await work()
        prepare_directory(settings.state_directory)
        async with locked_store(settings.state_directory, settings.database.get_secret_value()):
            return await work()

    return _done(locked())


def _done(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except* (ManagementError, StoreError, OSError) as errors:
        stop(errors)


def stop(error: BaseException) -> NoReturn:
    """Prints each line of the error and ends the command, with exit code 2 for settings or plugins that prevent a
    start, otherwise 1."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    for line in str(error).splitlines():
        typer.echo(f"netbird-management: {line}", err=True)
    raise typer.Exit(2 if isinstance(error, SettingsError | PluginError) else 1)
