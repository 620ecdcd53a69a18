"""`netbird-management`: init, run, check, plugins. Other modules contain the other commands."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer

from netbird_host import logs
from netbird_host.collector import calm_collector
from netbird_host.descriptors import raise_limit
from netbird_host.reload import Reload
from netbird_host.settings import Settings, SettingsError
from netbird_host.shutdown import on_signals
from netbird_host.systemd import Supervisor
from netbird_management.cli import accounts, backup, proxy_tokens, services, users
from netbird_management.cli.proxy_tokens import CREATED_BY
from netbird_management.cli.reloading import host_reload, operated, reload_host
from netbird_management.cli.store import Config, read, stop, with_state
from netbird_management.model.errors import PreconditionFailed
from netbird_management.model.store_errors import StoreError
from netbird_management.operations.accounts import create_account
from netbird_management.operations.proxy_tokens import create_proxy_token
from netbird_management.operations.users import create_token
from netbird_management.plugins.hooks import HookError, Hooks
from netbird_management.settings import ManagementSettings
from netbird_management.store.state import State

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The management host of the reverse proxy.",
)


def main() -> None:
    app()


@app.command()
def init(
    email: Annotated[str, typer.Option(help="The owner's e-mail address.")],
    config: Config = None,
    name: Annotated[str, typer.Option(help="The owner's name.")] = "Owner",
    token_days: Annotated[int, typer.Option(help="Days until the owner's access token expires.")] = 365,
    proxy_token: Annotated[str, typer.Option(help="Also create a management-wide proxy token with this name.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Create the store, the first account with its owner, and the owner's personal access token."""
    settings, _ = read(config)

    async def work(state: State) -> dict[str, str]:
        if state.snapshots.all():
            raise PreconditionFailed("an account already exists: nothing was changed")
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

    made = with_state(settings.value, work, alone=True)
    if as_json:
        typer.echo(json.dumps(made))
        return
    for label, value in made.items():
        typer.echo(f"{label.replace('_', ' ')}: {value}")
    typer.echo("tokens are not shown again", err=True)


@app.command()
def run(config: Config = None) -> None:
    """Serve REST and gRPC until SIGTERM or SIGINT."""
    settings, hooks = read(config, files=True)
    logs.configure(settings.value.log.level, settings.value.log.format)
    try:
        asyncio.run(_run(settings, hooks, config))
    except* (StoreError, HookError, OSError, SettingsError) as errors:
        stop(errors)


@app.command()
def check(
    config: Config = None, show: Annotated[bool, typer.Option(help="Print every value with its source.")] = False
) -> None:
    """Validate the settings without starting the host."""
    settings, _ = read(config, files=True)
    for line in settings.show() if show else ():
        typer.echo(f"{line.path} = {line.value}  # {line.source}")
    typer.echo("settings are valid", err=True)


@app.command("plugins")
def plugins(config: Config = None) -> None:
    """List the plugins in their order, with their claims and settings."""
    settings, hooks = read(config)
    shown = settings.show()
    for plugin in hooks.plugins:
        info = plugin.info
        typer.echo(f"{plugin.id} {info.version}  {info.summary}")
        for claim in info.claims:
            typer.echo(f"  claims {claim.field}")
        if info.options is not None:
            typer.echo(f"  [{plugin.id}]")
            for line in shown:
                if line.path.startswith(f"{plugin.id}."):
                    name = line.path.removeprefix(f"{plugin.id}.")
                    typer.echo(f"  {name} = {line.value}  # {line.source}")
        for where, models in (("service", info.settings), ("target", info.target_settings)):
            for model in models:
                names = ", ".join(getattr(model, "model_fields", ())) or "none"
                typer.echo(f"  {where} settings: {names}")


app.command("reload")(reload_host)
app.command("migrate")(backup.migrate_store)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("change-key")(backup.change_store_key)
app.add_typer(proxy_tokens.commands, name="token")
app.add_typer(users.commands, name="user")
app.add_typer(accounts.commands, name="account")
app.add_typer(services.commands, name="service")


async def _run(given: Settings[ManagementSettings], hooks: Hooks, config: Path | None) -> None:
    from netbird_management.server import serve  # this import takes a second, which other commands avoid

    settings, options, supervisor = given.value, given.options.values(), Supervisor()
    raise_limit()
    reload = host_reload(given, config)
    with reload.on_hangup(), on_signals(ends_process=True) as shutdown:
        async with (
            asyncio.TaskGroup() as tasks,
            _alive(tasks, supervisor, reload),
            serve(settings, hooks, shutdown, options=options, reload=reload) as server,
            operated(settings, reload),
        ):
            calm_collector()
            rest, grpc = settings.rest.address, settings.grpc.address
            if server.setup_secret:
                typer.echo(f"setup secret: {server.setup_secret}")
            typer.echo(f"ready rest={rest.host}:{server.rest_port} grpc={grpc.host}:{server.grpc_port}")
            supervisor.ready(f"rest {rest.host}:{server.rest_port}, grpc {grpc.host}:{server.grpc_port}")
            await shutdown.wait()
            supervisor.stopping("waiting for open calls")


@asynccontextmanager
async def _alive(
    tasks: asyncio.TaskGroup, supervisor: Supervisor, reload: Reload[ManagementSettings]
) -> AsyncIterator[None]:
    background = [tasks.create_task(supervisor.keep_alive()), tasks.create_task(reload.serve())]
    try:
        yield
    finally:
        for task in background:
            task.cancel()
