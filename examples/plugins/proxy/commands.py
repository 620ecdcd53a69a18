"""Adds commands: installed as `headers`, the plugin provides `netbird-proxy headers fold X_NetBird_User`."""

from __future__ import annotations

import typer

from netbird_proxy import PluginInfo, fold, hookimpl


class HeaderCommands:
    """Shows the name under which a header is guarded."""

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


def _same(name: str, other: str) -> None:
    """Exit with 0 if an upstream may take the two names for the same, else with 1."""
    raise typer.Exit(fold(name.encode()) != fold(other.encode()))
