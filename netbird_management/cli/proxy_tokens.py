"""`netbird-management token`: management-wide access tokens of proxies."""

import re
from typing import Annotated

import typer

from netbird_management.cli.store import Config, read, stop, with_state
from netbird_management.model.ids import TokenId
from netbird_management.operations.proxy_tokens import create_proxy_token, proxy_tokens_of, revoke_proxy_token
from netbird_management.store.state import State

commands = typer.Typer(
    no_args_is_help=True, help="Management-wide access tokens, for proxies that serve every account."
)
CREATED_BY = "CLI"


@commands.command("create")
def token_create(
    name: Annotated[str, typer.Option(help="Name of the token.")],
    config: Config = None,
    expires_in: Annotated[
        str, typer.Option(help="Lifetime, such as 365d, 12h; without it the token does not expire.")
    ] = "",
) -> None:
    """Create a token and print it; it is not shown again."""
    settings = read(config)[0].value
    seconds = _seconds(expires_in)

    async def work(state: State) -> str:
        _, plain = await create_proxy_token(
            state, name=name, account_id=None, created_by=CREATED_BY, expires_in=seconds
        )
        return plain

    typer.echo(with_state(settings, work))


@commands.command("list")
def token_list(config: Config = None) -> None:
    """List the management-wide tokens."""
    settings = read(config)[0].value
    for token in with_state(settings, lambda state: proxy_tokens_of(state, None)):
        state = "valid" if token.valid else "revoked" if token.revoked else "expired"
        expires = "never" if token.expires_at is None else token.expires_at.isoformat(timespec="seconds")
        typer.echo(f"{token.id}  {state}  expires {expires}  {token.name}")


@commands.command("revoke")
def token_revoke(token_id: Annotated[str, typer.Argument(help="Id from `token list`.")], config: Config = None) -> None:
    """Revoke a management-wide token. Management disconnects proxies that use it within a minute."""
    settings = read(config)[0].value
    with_state(settings, lambda state: revoke_proxy_token(state, None, TokenId(token_id)))


def _seconds(text: str) -> float:
    if not text:
        return 0
    parsed = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if parsed is None:
        stop(ValueError(f"--expires-in must be a duration such as 365d, 12h or 30m, not {text!r}"))
    return int(parsed[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[parsed[2]]
