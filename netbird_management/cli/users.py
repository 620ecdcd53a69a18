"""`netbird-management user`: commands on the users of accounts."""

from pathlib import Path
from typing import Annotated

import typer

from netbird_management.cli.store import Config, read, with_state
from netbird_management.model.accounts import Role, User
from netbird_management.model.errors import InvalidArgument, NotFound
from netbird_management.model.ids import UserId
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.users import approve_user, create_token, create_user, update_user
from netbird_management.store.state import State

UserArgument = Annotated[str, typer.Argument(help="Id from `user list`.")]
commands = typer.Typer(no_args_is_help=True, help="Users of an account. Stop a running host before changes.")


@commands.command("list")
def list_users(config: Config = None) -> None:
    """List the users of every account."""
    settings = read(config)[0].value

    async def work(state: State) -> list[User]:
        return [user for account in state.snapshots.all() for user in account.users.values()]

    for user in with_state(settings, work):
        condition = "pending" if user.pending_approval else "blocked" if user.blocked else "active"
        typer.echo(f"{user.id}  {user.role}  {condition}  {user.email or user.name}")


@commands.command("create")
def create(
    email: Annotated[str, typer.Option(help="The user's e-mail address.")],
    config: Config = None,
    role: Annotated[Role, typer.Option(help="The user's role, which decides their permissions.")] = Role.USER,
    name: Annotated[str, typer.Option(help="The user's name.")] = "",
    account: Annotated[str, typer.Option(help="The account's id; required if several accounts exist.")] = "",
) -> None:
    """Create a user and print their id."""
    settings = read(config)[0].value

    async def work(state: State) -> User:
        return await create_user(state, _account(state, account).account.id, role=role, email=email, name=name)

    typer.echo(with_state(settings, work, alone=True).id)


@commands.command("token")
def token(
    user_id: UserArgument,
    config: Config = None,
    days: Annotated[int, typer.Option(help="Days until the token expires.")] = 30,
    name: Annotated[str, typer.Option(help="Name of the token.")] = "command line",
) -> None:
    """Create a personal access token and print it; it is not shown again."""
    settings = read(config)[0].value

    async def work(state: State) -> str:
        _, user = _user(state, user_id)
        return (await create_token(state, user, name=name, days=days, created_by=user.id))[1]

    typer.echo(with_state(settings, work))


def _set_blocked(user_id: str, config: Path | None, *, blocked: bool) -> None:
    settings = read(config)[0].value

    async def work(state: State) -> None:
        account, user = _user(state, user_id)
        if user.pending_approval and not blocked:
            await approve_user(state, account.account.id, user.id)
            return
        await update_user(
            state, account.account.id, user.id, role=user.role, auto_groups=user.auto_groups, blocked=blocked
        )

    with_state(settings, work, alone=True)


@commands.command("block")
def block(user_id: UserArgument, config: Config = None) -> None:
    """Block a user and end their sessions."""
    _set_blocked(user_id, config, blocked=True)


@commands.command("unblock")
def unblock(user_id: UserArgument, config: Config = None) -> None:
    """Unblock a user, or approve a user who awaits approval."""
    _set_blocked(user_id, config, blocked=False)


def _account(state: State, account_id: str) -> AccountSnapshot:
    accounts = state.snapshots.all()
    if account_id:
        accounts = tuple(account for account in accounts if account.account.id == account_id)
    if not accounts:
        raise NotFound(f"account {account_id} not found" if account_id else "no account exists: run init first")
    if len(accounts) > 1:
        raise InvalidArgument("several accounts exist: select one with --account")
    return accounts[0]


def _user(state: State, user_id: str) -> tuple[AccountSnapshot, User]:
    for account in state.snapshots.all():
        user = account.users.get(UserId(user_id))
        if user is not None:
            return account, user
    raise NotFound(f"user {user_id} not found")
