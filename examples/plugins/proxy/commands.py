"""Commands of the plugin's own: installed as `headers`, it is `netbird-proxy headers fold X_NetBird_User`."""

from __future__ import annotations

import typer

from netbird_proxy import PluginInfo, fold, hookimpl


class HeaderCommands:
    """Shows under which name a header is guarded."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="shows how header names fold")

    @hookimpl
    def commands(self) -> typer.Typer:
        app = typer.Typer(help="Look at header names.", no_args_is_help=True)
        app.command("fold")(_fold)
        app.command("same")(_same)
        return app


def _fold(name: str) -> None:
    """Print the folded name."""
    typer.echo(fold(name.encode()).decode())


def _same(one: str, other: str) -> None:
    """Exit with 0 if two names are one to an upstream, else with 1."""
    raise typer.Exit(fold(one.encode()) != fold(other.encode()))
