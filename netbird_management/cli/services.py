"""`netbird-management service`: the services that proxies expose."""

import json
from typing import Annotated, Any

import typer

from netbird_management.cli.store import Config, read, with_state
from netbird_management.operations.statuses import worst_statuses
from netbird_management.store.state import State

commands = typer.Typer(no_args_is_help=True, help="Exposed services. Use the API to change them.")


@commands.command("list")
def list_services(
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """List the services of every account with the worst status of their live proxies."""
    settings = read(config)[0].value

    async def work(state: State) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        for account in state.snapshots.all():
            worst = await worst_statuses(state, account.account.id)
            listed += [
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
        return listed

    for line in with_state(settings, work):
        access = "private" if line["private"] else "public"
        enabled = line["status"] if line["enabled"] else "disabled"
        typer.echo(
            json.dumps(line) if as_json else f"{line['id']}  {line['domain']}  {line['mode']}  {access}  {enabled}"
        )
