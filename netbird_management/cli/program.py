"""`netbird-management`: init, run, check, token; the rest is in `commands`."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from netbird_host import logs
from netbird_host.collector import calm_collector
from netbird_host.descriptors import raise_limit
from netbird_host.plugins import PluginError
from netbird_host.settings import Settings, SettingsError, Shown
from netbird_host.shutdown import on_signals
from netbird_host.systemd import Supervisor
from netbird_management.cli import commands
from netbird_management.model.errors import ManagementError, PreconditionFailed
from netbird_management.model.ids import TokenId
from netbird_management.model.store_errors import StoreError
from netbird_management.operations.accounts import create_account
from netbird_management.operations.proxy_tokens import create_proxy_token, proxy_tokens_of, revoke_proxy_token
from netbird_management.operations.users import create_token
from netbird_management.plugins.hooks import HookError, Hooks
from netbird_management.settings import CONFIG_VARIABLE, ManagementSettings, read_settings
from netbird_management.store.directory import prepare_directory
from netbird_management.store.engine import is_outdated
from netbird_management.store.holding import held_store
from netbird_management.store.state import State

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The management host of the reverse proxy.",
)
tokens = typer.Typer(no_args_is_help=True, help="Management-wide access tokens, for proxies that serve every account.")
app.add_typer(tokens, name="token")

T = TypeVar("T")
Config = Annotated[
    Path | None, typer.Option("--config", "-c", envvar=CONFIG_VARIABLE, help="The settings, a TOML file.")
]
CREATED_BY = "CLI"


def main() -> None:
    app()


@app.command()
def init(
    email: Annotated[str, typer.Option(help="The owner's e-mail address.")],
    config: Config = None,
    name: Annotated[str, typer.Option(help="The owner's name.")] = "Owner",
    token_days: Annotated[int, typer.Option(help="How long the owner's access token is valid.")] = 365,
    proxy_token: Annotated[str, typer.Option(help="Also make a management-wide proxy token of this name.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make the store, the first account with its owner, and the owner's personal access token."""
    settings, _ = _settings(config)

    async def work(state: State) -> dict[str, str]:
        if state.snapshots.all():
            raise PreconditionFailed("there is an account already: nothing was changed")
        account_id, owner = await create_account(
            state, email=email, name=name, dns_domain=settings.value.dns_domain, only_first=True
        )
        _, plain = await create_token(state, owner, name="init", days=token_days, created_by=owner.id)
        made = {"account_id": account_id, "user_id": owner.id, "personal_access_token": plain}
        if proxy_token:
            _, made["proxy_token"] = await create_proxy_token(
                state, name=proxy_token, account_id=None, created_by=CREATED_BY
            )
        return made

    made = _with_state(settings.value, work, alone=True)
    if as_json:
        typer.echo(json.dumps(made))
        return
    for what, value in made.items():
        typer.echo(f"{what.replace('_', ' ')}: {value}")
    typer.echo("tokens are shown this once", err=True)


@app.command()
def run(config: Config = None) -> None:
    """Serve REST and gRPC until SIGTERM or SIGINT."""
    settings, hooks = _settings(config, files=True)
    logs.configure()
    try:
        asyncio.run(_run(settings, hooks))
    except* (StoreError, HookError, OSError) as errors:
        _stop(errors)


@app.command()
def check(config: Config = None, show: Annotated[bool, typer.Option(help="Print every value.")] = False) -> None:
    """Judge the settings without starting anything."""
    settings, _ = _settings(config, files=True)
    for line in settings.show() if show else ():
        typer.echo(f"{line.path} = {line.value}  # {line.source}")
    typer.echo("settings are good", err=True)


@tokens.command("create")
def token_create(
    name: Annotated[str, typer.Option(help="What the token is for.")],
    config: Config = None,
    expires_in: Annotated[str, typer.Option(help="Such as 365d, 12h; without it the token does not expire.")] = "",
) -> None:
    """Make a token and print it, this once."""
    settings, _ = _settings(config)
    seconds = _seconds(expires_in)

    async def work(state: State) -> str:
        _, plain = await create_proxy_token(
            state, name=name, account_id=None, created_by=CREATED_BY, expires_in=seconds
        )
        return plain

    typer.echo(_with_state(settings.value, work))


@tokens.command("list")
def token_list(config: Config = None) -> None:
    """List the management-wide tokens."""
    settings, _ = _settings(config)
    for token in _with_state(settings.value, lambda state: proxy_tokens_of(state, None)):
        state = "valid" if token.valid else "revoked" if token.revoked else "expired"
        expires = "never" if token.expires_at is None else token.expires_at.isoformat(timespec="seconds")
        typer.echo(f"{token.id}  {state}  expires {expires}  {token.name}")


@tokens.command("revoke")
def token_revoke(
    token_id: Annotated[str, typer.Argument(help="As `token list` tells it.")], config: Config = None
) -> None:
    """Revoke a management-wide token; proxies that use it are cut off within a minute."""
    settings, _ = _settings(config)
    _with_state(settings.value, lambda state: revoke_proxy_token(state, None, TokenId(token_id)))


async def _run(given: Settings[ManagementSettings], hooks: Hooks) -> None:
    from netbird_management.server import serve  # takes a second, which the other commands need not wait for

    settings, options, supervisor = given.value, given.options.values(), Supervisor()
    raise_limit()
    with on_signals() as shutdown:
        async with (
            asyncio.TaskGroup() as tasks,
            _alive(tasks, supervisor),
            serve(settings, hooks, shutdown, options=options) as server,
        ):
            calm_collector()
            rest, grpc = settings.rest.address, settings.grpc.address
            if server.setup_secret:
                typer.echo(f"setup secret: {server.setup_secret}")
            typer.echo(f"ready rest={rest.host}:{server.rest_port} grpc={grpc.host}:{server.grpc_port}")
            supervisor.ready(f"rest {rest.host}:{server.rest_port}, grpc {grpc.host}:{server.grpc_port}")
            await shutdown.wait()
            supervisor.stopping("open calls have their time to end")


@asynccontextmanager
async def _alive(tasks: asyncio.TaskGroup, supervisor: Supervisor) -> AsyncIterator[None]:
    life = tasks.create_task(supervisor.keep_alive())
    try:
        yield
    finally:
        life.cancel()


class _House:
    """What `commands` are done with."""

    def settings(self, config: Path | None) -> tuple[ManagementSettings, Hooks]:
        settings, hooks = _settings(config)
        return settings.value, hooks

    def sections(self, config: Path | None) -> tuple[Hooks, list[Shown]]:
        settings, hooks = _settings(config)
        return hooks, settings.show()

    def with_state(
        self, settings: ManagementSettings, work: Callable[[State], Awaitable[T]], *, alone: bool = False
    ) -> T:
        return _with_state(settings, work, alone=alone)

    def apart(self, settings: ManagementSettings, work: Callable[[], Awaitable[T]], *, alone: bool = False) -> T:
        async def done() -> T:
            if not alone:
                return await work()
            prepare_directory(settings.state_directory)
            async with held_store(settings.state_directory, settings.database.get_secret_value()):
                return await work()

        return _done(done())


commands.add(app, _House())


def _settings(config: Path | None, *, files: bool = False) -> tuple[Settings[ManagementSettings], Hooks]:
    """Read and judge; `files` also those that the settings name."""
    try:
        settings, hooks = read_settings(config)
        if files:
            settings.value.rest.judge("rest")
            settings.value.grpc.judge("grpc")
        return settings, hooks
    except (SettingsError, PluginError) as error:
        _stop(error)


def _with_state(settings: ManagementSettings, work: Callable[[State], Awaitable[T]], *, alone: bool = False) -> T:
    """Runs one piece of work on the store; `alone` if it changes accounts, which a running host would not hear of.

    So is what would migrate the store: a host of an earlier version may run on it.
    """
    directory, database = settings.state_directory, settings.database.get_secret_value()

    async def opened() -> T:
        vault = prepare_directory(directory)
        async with (
            held_store(directory, database) if alone or await is_outdated(directory, database) else nullcontext(),
            State.open(directory, vault, database) as state,
        ):
            return await work(state)

    return _done(opened())


def _done(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except* (ManagementError, StoreError, OSError) as errors:
        _stop(errors)


def _seconds(text: str) -> float:
    if not text:
        return 0
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None:
        _stop(ValueError(f"{text!r} is not a duration such as 365d, 12h or 30m"))
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def _stop(error: BaseException) -> NoReturn:
    """Ends the command: each problem on a line that says who tells it; 2 for what a start cannot use, else 1."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    for line in str(error).splitlines():
        typer.echo(f"netbird-management: {line}", err=True)
    raise typer.Exit(2 if isinstance(error, SettingsError | PluginError) else 1)
