"""More of `netbird-management`: plugins, user, account, service, migrate, backup, restore, change-key."""

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from netbird_host.settings import Shown
from netbird_management.login.claimed_accounts import ClaimedAccounts
from netbird_management.model.accounts import Role, User
from netbird_management.model.errors import InvalidArgument, NotFound
from netbird_management.model.ids import UserId
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.accounts import create_account
from netbird_management.operations.statuses import worst_statuses
from netbird_management.operations.users import approve_user, create_token, create_user, update_user
from netbird_management.plugins.hooks import Hooks
from netbird_management.settings import CONFIG_VARIABLE, ManagementSettings
from netbird_management.store.archive import Progress, read_archive, write_archive
from netbird_management.store.engine import open_engines
from netbird_management.store.schema import versions
from netbird_management.store.sealing import change_key
from netbird_management.store.state import State

T = TypeVar("T")
Config = Annotated[
    Path | None, typer.Option("--config", "-c", envvar=CONFIG_VARIABLE, help="The settings, a TOML file.")
]

UserArgument = Annotated[str, typer.Argument(help="Their id, as `user list` tells it.")]


class House(Protocol):
    """What a command is done with."""

    def settings(self, config: Path | None) -> tuple[ManagementSettings, Hooks]: ...

    def sections(self, config: Path | None) -> tuple[Hooks, list[Shown]]:
        """The plugins, and each value of the settings with its source."""

    def with_state(
        self, settings: ManagementSettings, work: Callable[[State], Awaitable[T]], *, alone: bool = False
    ) -> T: ...

    def apart(self, settings: ManagementSettings, work: Callable[[], Awaitable[T]], *, alone: bool = False) -> T:
        """As `with_state`, without opening the store."""


def add(app: typer.Typer, house: House) -> None:
    """Puts the commands on the program's own."""
    _add_plugins(app, house)
    _add_users(app, house)
    _add_accounts(app, house)
    _add_services(app, house)
    _add_store(app, house)


def _add_plugins(app: typer.Typer, house: House) -> None:
    @app.command("plugins")
    def plugins(config: Config = None) -> None:
        """List the plugins in their order, with what they claim and their settings."""
        hooks, shown = house.sections(config)
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
                    typer.echo(f"  a {where} may say {names}")


def _add_users(app: typer.Typer, house: House) -> None:
    users = typer.Typer(no_args_is_help=True, help="People and programs of an account. Stop a running host first.")
    app.add_typer(users, name="user")

    @users.command("list")
    def list_users(config: Config = None) -> None:
        """List the users of every account."""
        settings, _ = house.settings(config)

        async def work(state: State) -> list[User]:
            return [user for account in state.snapshots.all() for user in account.users.values()]

        for user in house.with_state(settings, work):
            condition = "pending" if user.pending_approval else "blocked" if user.blocked else "active"
            typer.echo(f"{user.id}  {user.role}  {condition}  {user.email or user.name}")

    @users.command("create")
    def create(
        email: Annotated[str, typer.Option(help="Their address.")],
        config: Config = None,
        role: Annotated[Role, typer.Option(help="What they may do.")] = Role.USER,
        name: Annotated[str, typer.Option(help="What they are called.")] = "",
        account: Annotated[str, typer.Option(help="The account's id, where there are several.")] = "",
    ) -> None:
        """Make a user and print their id."""
        settings, _ = house.settings(config)

        async def work(state: State) -> User:
            return await create_user(state, _account(state, account).account.id, role=role, email=email, name=name)

        typer.echo(house.with_state(settings, work, alone=True).id)

    @users.command("token")
    def token(
        user_id: UserArgument,
        config: Config = None,
        days: Annotated[int, typer.Option(help="How long it is valid.")] = 30,
        name: Annotated[str, typer.Option(help="What it is for.")] = "command line",
    ) -> None:
        """Make a personal access token and print it, this once."""
        settings, _ = house.settings(config)

        async def work(state: State) -> str:
            _, user = _user(state, user_id)
            return (await create_token(state, user, name=name, days=days, created_by=user.id))[1]

        typer.echo(house.with_state(settings, work))

    def judge(user_id: str, config: Path | None, *, blocked: bool) -> None:
        settings, _ = house.settings(config)

        async def work(state: State) -> None:
            account, user = _user(state, user_id)
            if user.pending_approval and not blocked:
                await approve_user(state, account.account.id, user.id)
                return
            await update_user(
                state, account.account.id, user.id, role=user.role, auto_groups=user.auto_groups, blocked=blocked
            )

        house.with_state(settings, work, alone=True)

    @users.command("block")
    def block(user_id: UserArgument, config: Config = None) -> None:
        """Let a user in no more, and end their sessions."""
        judge(user_id, config, blocked=True)

    @users.command("unblock")
    def unblock(user_id: UserArgument, config: Config = None) -> None:
        """Let a user in who was blocked or waits for approval."""
        judge(user_id, config, blocked=False)


def _add_accounts(app: typer.Typer, house: House) -> None:
    accounts = typer.Typer(no_args_is_help=True, help="Accounts: the tenants of this management.")
    app.add_typer(accounts, name="account")

    @accounts.command("list")
    def list_accounts(config: Config = None) -> None:
        """List the accounts with their owners."""
        settings, _ = house.settings(config)

        async def work(state: State) -> list[AccountSnapshot]:
            return sorted(state.snapshots.all(), key=lambda account: account.account.created_at)

        for account in house.with_state(settings, work):
            owners = [user.email for user in account.users.values() if user.role is Role.OWNER]
            typer.echo(f"{account.account.id}  {account.account.created_at:%Y-%m-%d}  {' '.join(owners)}")

    @accounts.command("create")
    def create_one(
        email: Annotated[str, typer.Option(help="The owner's e-mail address.")],
        config: Config = None,
        name: Annotated[str, typer.Option(help="The owner's name.")] = "Owner",
        claim: Annotated[str, typer.Option(help="What the identity provider's claim says of its people.")] = "",
        token_days: Annotated[int, typer.Option(help="How long the owner's access token is valid.")] = 365,
    ) -> None:
        """Make an account with its owner; print its id, and the owner's personal access token, this once."""
        settings, _ = house.settings(config)
        if claim and (settings.oidc is None or not settings.oidc.account_claim):
            raise typer.BadParameter("the settings name no oidc.account_claim", param_hint="--claim")

        async def work(state: State) -> tuple[str, str]:
            account_id = ClaimedAccounts(settings.oidc).named(claim) if claim and settings.oidc else None
            made, owner = await create_account(
                state, email=email, name=name, dns_domain=settings.dns_domain, account_id=account_id
            )
            return made, (await create_token(state, owner, name="create", days=token_days, created_by=owner.id))[1]

        for line in house.with_state(settings, work, alone=True):
            typer.echo(line)


def _add_services(app: typer.Typer, house: House) -> None:
    services = typer.Typer(no_args_is_help=True, help="What is exposed. Changes go through the API.")
    app.add_typer(services, name="service")

    @services.command("list")
    def list_services(
        config: Config = None, as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False
    ) -> None:
        """List the services of every account with the worst status of their live proxies."""
        settings, _ = house.settings(config)

        async def work(state: State) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            for account in state.snapshots.all():
                worst = await worst_statuses(state, account.account.id)
                found += [
                    {
                        "id": service.id,
                        "account_id": service.account_id,
                        "name": service.name,
                        "domain": service.domain,
                        "mode": service.mode,
                        "private": service.private,
                        "enabled": service.served,
                        "cluster": service.proxy_cluster,
                        "status": str(worst.get(service.id, "pending")),
                    }
                    for service in sorted(account.services.values(), key=lambda service: service.domain)
                ]
            return found

        for one in house.with_state(settings, work):
            access = "private" if one["private"] else "public"
            enabled = one["status"] if one["enabled"] else "disabled"
            typer.echo(
                json.dumps(one) if as_json else f"{one['id']}  {one['domain']}  {one['mode']}  {access}  {enabled}"
            )


def _add_store(app: typer.Typer, house: House) -> None:
    @app.command("migrate")
    def migrate_store(config: Config = None) -> None:
        """Bring the store to this version. A start does it as well; this tells what it did."""
        settings, _ = house.settings(config)

        async def work() -> list[str]:
            async with open_engines(settings.state_directory, settings.database.get_secret_value()) as engines:
                accounts, log = await versions(engines.accounts), await versions(engines.log, "log")
            return [f"accounts: {accounts[0]}", f"log: {log[0]}"]

        for line in house.apart(settings, work, alone=True):
            typer.echo(line)

    @app.command("backup")
    def backup(
        target: Annotated[Path, typer.Argument(help="The file, which must not be there yet.")], config: Config = None
    ) -> None:
        """Write the whole store with its key to a file, also while a host runs. Guard the file like the store."""
        settings, _ = house.settings(config)
        with _progress() as progress:
            rows = house.apart(
                settings,
                lambda: write_archive(settings.state_directory, settings.database.get_secret_value(), target, progress),
            )
        typer.echo(f"{rows} rows in {target}")

    @app.command("restore")
    def restore(source: Annotated[Path, typer.Argument(help="What `backup` wrote.")], config: Config = None) -> None:
        """Fill an empty store from a backup, of either kind of database."""
        settings, _ = house.settings(config)
        with _progress() as progress:
            rows = house.apart(
                settings,
                lambda: read_archive(source, settings.state_directory, settings.database.get_secret_value(), progress),
            )
        typer.echo(f"{rows} rows restored")

    @app.command("change-key")
    def change_store_key(config: Config = None) -> None:
        """Seal every stored secret with a new key. Stop a running host first; older backups keep the key they have."""
        settings, _ = house.settings(config)
        database = settings.database.get_secret_value()
        count = house.apart(settings, lambda: change_key(settings.state_directory, database), alone=True)
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
        known: dict[str, Any] = {}

        def tell(table: str, done: int, total: int) -> None:
            if table not in known:
                known[table] = bars.add_task(table, total=total)
            bars.update(known[table], completed=done, total=total)

        yield tell


def _account(state: State, account_id: str) -> AccountSnapshot:
    accounts = state.snapshots.all()
    if account_id:
        accounts = tuple(account for account in accounts if account.account.id == account_id)
    if not accounts:
        raise NotFound("there is no such account")
    if len(accounts) > 1:
        raise InvalidArgument("there are several accounts: name one with --account")
    return accounts[0]


def _user(state: State, user_id: str) -> tuple[AccountSnapshot, User]:
    for account in state.snapshots.all():
        user = account.users.get(UserId(user_id))
        if user is not None:
            return account, user
    raise NotFound(f"user: {user_id} not found")
