"""`netbird-management account`: commands on the accounts, which are the tenants."""

from typing import Annotated

import typer

from netbird_management.cli.store import Config, read, with_state
from netbird_management.login.claimed_accounts import ClaimedAccounts
from netbird_management.model.accounts import Role
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.accounts import create_account
from netbird_management.operations.users import create_token
from netbird_management.store.state import State

commands = typer.Typer(no_args_is_help=True, help="Accounts: the tenants of this management.")


@commands.command("list")
def list_accounts(config: Config = None) -> None:
    """List the accounts with their owners."""
    settings = read(config)[0].value

    async def work(state: State) -> list[AccountSnapshot]:
        return sorted(state.snapshots.all(), key=lambda account: account.account.created_at)

    for account in with_state(settings, work):
        owners = [user.email for user in account.users.values() if user.role is Role.OWNER]
        typer.echo(f"{account.account.id}  {account.account.created_at:%Y-%m-%d}  {' '.join(owners)}")


@commands.command("create")
def create_one(
    email: Annotated[str, typer.Option(help="The owner's e-mail address.")],
    config: Config = None,
    name: Annotated[str, typer.Option(help="The owner's name.")] = "Owner",
    claim: Annotated[
        str, typer.Option(help="Value of the identity provider's account claim for users of this account.")
    ] = "",
    token_days: Annotated[int, typer.Option(help="Days until the owner's access token expires.")] = 365,
) -> None:
    """Create an account with its owner. Print its id and the owner's access token, which is not shown again."""
    settings = read(config)[0].value
    if claim and (settings.oidc is None or not settings.oidc.account_claim):
        raise typer.BadParameter("oidc.account_claim must be set in the settings", param_hint="--claim")

    async def work(state: State) -> tuple[str, str]:
        account_id = ClaimedAccounts(settings.oidc).named(claim) if claim and settings.oidc else None
        created_id, owner = await create_account(
            state, email=email, name=name, dns_domain=settings.dns_domain, account_id=account_id
        )
        return created_id, (await create_token(state, owner, name="create", days=token_days, created_by=owner.id))[1]

    for line in with_state(settings, work, alone=True):
        typer.echo(line)
