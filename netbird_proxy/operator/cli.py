"""`netbird-proxy`: run it, check its settings, and ask a running one."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from netbird_host.plugins import installed
from netbird_proxy.api.errors import PluginFailed, ProxyError, SettingsError
from netbird_proxy.routing.hooks import GROUP, Hooks, load_hooks

if TYPE_CHECKING:
    # The server is imported by the commands that need it: a plugin's command starts a second sooner without it.
    from netbird_proxy.process.loading import Loaded

app = typer.Typer(
    name="netbird-proxy",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Whoever reads from a pipe wants a line a thing, however long.
out = Console() if sys.stdout.isatty() else Console(width=1000)
err = Console(stderr=True)

Config = Annotated[
    Path | None, typer.Option("--config", "-c", envvar="NETBIRD_PROXY_CONFIG", help="Settings file (TOML).")
]
Socket = Annotated[
    Path | None, typer.Option("--admin", envvar="NETBIRD_PROXY_ADMIN", help="Admin socket of the proxy to ask.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Failure(Exception):
    """Something the person at the terminal must read; ends the command with this exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"netbird-proxy {distribution_version('netbird-proxy')}", markup=False, highlight=False)
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """A reverse proxy for private services."""


@app.command()
def run(
    config: Config = None,
    plugin: Annotated[list[str] | None, typer.Option("--plugin", help="Instead of `plugins` in the file.")] = None,
    private: Annotated[bool | None, typer.Option("--private/--no-private", help="Listen inside tunnels.")] = None,
) -> None:
    """Run the proxy until it is told to stop."""
    import uvloop

    from netbird_host import logs
    from netbird_host.running import run_process

    loaded = _load(config, plugin, private)
    logs.configure(loaded.settings.log.level, loaded.settings.log.format)
    raise typer.Exit(run_process(_serve(loaded), uvloop.new_event_loop))


@app.command()
def check(
    config: Config = None,
    show: Annotated[bool, typer.Option("--show", help="Print each setting with its source.")] = False,
) -> None:
    """Judge settings and plugins as a start would, and start nothing."""
    from netbird_proxy.process.loading import judge_files

    loaded = _load(config, None, None)
    judge_files(loaded)
    if show:
        table = Table("setting", "value", "from", box=None, pad_edge=False)
        for shown in loaded.shown:
            _add_row(table, shown.path, shown.value, shown.source)
        out.print(table)
    for name in loaded.ignored:
        err.print(f"note: {name} is set, and this proxy has no such setting", markup=False)
    for renamed in loaded.given.renamed:
        err.print(f"note: {renamed.old} is now {renamed.new}", markup=False)
    out.print(f"ok: {len(loaded.hooks.plugins)} plugins, {len(loaded.settings.listen)} host listeners")


@app.command()
def explain(
    what: Annotated[str, typer.Argument(help="An exchange's id, or a host.")],
    path: Annotated[str | None, typer.Argument(help="With a host: the path of a request to think through.")] = None,
    account: Annotated[str | None, typer.Option(help="Think of a request through this account's tunnel.")] = None,
    config: Config = None,
    admin: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Why an exchange ended as it did; or, with HOST and PATH, what a request would meet."""
    if path is None and "." not in what:
        story = _ask(config, admin, f"/exchanges/{what}")
        _print(story, as_json, _tell_exchange)
        return
    query = {"host": what, "path": path or "/", **({"account": account} if account else {})}
    _print(_ask(config, admin, "/explain", query), as_json, _tell_dry_run)


@app.command()
def plugins(config: Config = None, admin: Socket = None, as_json: AsJson = False) -> None:
    """The plugins of a running proxy, in their order."""

    def tell(found: Any) -> None:
        table = Table("plugin", "version", "hooks", "claims", "what it does", box=None, pad_edge=False)
        for one in found:
            cells = one["id"], one["version"], " ".join(one["hooks"]), " ".join(one["claims"]), one["summary"]
            _add_row(table, *cells)
        out.print(table)

    _print(_ask(config, admin, "/plugins"), as_json, tell)


@app.command()
def routes(config: Config = None, admin: Socket = None, as_json: AsJson = False) -> None:
    """What a running proxy serves, and what it refuses to serve and why."""

    def tell(found: Any) -> None:
        table = Table("host", "prefix", "service", "upstreams", "steps", box=None, pad_edge=False)
        for one in found:
            state = f"refused: {one['refused']}" if one["refused"] else " → ".join(one["steps"])
            _add_row(table, one["host"], one["prefix"], one["service"], " ".join(one["upstreams"]), state)
        out.print(table)

    _print(_ask(config, admin, "/routes"), as_json, tell)


@app.command()
def reload(config: Config = None, admin: Socket = None, as_json: AsJson = False) -> None:
    """Have a running proxy read settings, certificates and log files again. Nothing is cut.

    Exit code 1 where something could not be used and stays as it was.
    """
    report = _ask(config, admin, "/reload", method="POST")
    _print(report, as_json, _print_reload)
    if report["kept"]:
        raise typer.Exit(1)


def _print_reload(report: Any) -> None:
    from netbird_host.reload import summary

    for line in summary(report):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


async def _serve(loaded: Loaded) -> int:
    from netbird_host.systemd import Supervisor
    from netbird_proxy.operator.attendants import operated

    # Made here and not before: the channel to management belongs to the loop that is running when it is made.
    return await operated(loaded, supervisor=Supervisor()).run()


def _load(config: Path | None, plugins_: list[str] | None, private: bool | None) -> Loaded:
    from netbird_host.settings import Given
    from netbird_proxy.process.loading import load
    from netbird_proxy.process.settings import read_settings

    flags: list[Given] = []
    if plugins_:
        flags.append(Given(("plugins",), plugins_, "flag --plugin"))
    if private is not None:
        flags.append(Given(("private",), private, "flag --private"))
    try:
        return load(read_settings(config, flags=flags))
    except SettingsError as exc:
        if config is not None:
            raise
        raise SettingsError(f"{exc}\nno settings file was named: use --config FILE or NETBIRD_PROXY_CONFIG") from exc


def _socket(config: Path | None, admin: Path | None) -> Path:
    """Which proxy to ask: the flag, else the settings file's, else the only one there."""
    from netbird_proxy.process.state import default_socket, proxy_id

    if admin is not None:
        return admin
    if config is not None:
        settings = _load(config, None, None).settings
        return settings.admin.socket or default_socket(proxy_id(settings.state_directory))
    directory = default_socket("any").parent
    found = sorted(directory.glob("*.sock")) if directory.is_dir() else []
    if len(found) == 1:
        return found[0]
    if not found:
        raise Failure(f"no running proxy in {directory}: name its socket with --admin, or its file with --config")
    raise Failure("more than one proxy runs here; pick one with --admin:\n" + "\n".join(map(str, found)))


def _ask(
    config: Path | None, admin: Path | None, path: str, query: dict[str, str] | None = None, *, method: str = "GET"
) -> Any:
    import httpx  # a quarter of a second that a start of the proxy need not spend

    socket = _socket(config, admin)
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=10) as client:
            answer = client.request(method, f"http://proxy{path}", params=query)
    except httpx.HTTPError as exc:
        raise Failure(f"{socket}: {exc}: is the proxy running?") from exc
    if answer.status_code == 404:
        raise Failure(answer.json()["message"])
    answer.raise_for_status()
    return answer.json()


def _add_row(table: Table, *cells: str) -> None:
    """A row whose cells are shown as they are: rich would read `[…]` in them as markup, a terminal the rest."""
    table.add_row(*(Text("".join(c if c.isprintable() else repr(c)[1:-1] for c in cell)) for cell in cells))


def _print(found: Any, as_json: bool, tell: Any) -> None:
    if as_json:
        out.print_json(json.dumps(found))
    else:
        tell(found)


def _tell_exchange(story: Any) -> None:
    came, answer = story["from"], story["answer"]
    out.print(f"{story['request']}", markup=False)
    out.print(f"  at        {story['at']}", markup=False)
    account = f", tunnel of account {came['account']}" if came["account"] else ""
    out.print(f"  from      {came['peer']} on {came['listener']}{account}", markup=False)
    route = story["route"]
    out.print(f"  route     {route['service'] + ' ' + route['prefix'] if route else 'none'}", markup=False)
    if who := story["identity"]:
        out.print(
            f"  identity  {who['email'] or who['user']} ({', '.join(who['groups'])}) by {who['by']}", markup=False
        )
    for step in story["steps"]:
        out.print(f"  {step['stage']:<12} {step['plugin']}: {step['verdict']}", markup=False)
        if step["reason"]:
            out.print(f"{'':15}{step['reason']}", markup=False)
        for name, value in step["facts"].items():
            out.print(f"{'':15}{name}: {value}", markup=False)
    for one in story["upstream"]:
        out.print(f"  upstream  {one['to']}: {one['error'] or one['status']}", markup=False)
    if not story["upstream"]:
        out.print("  upstream  not dialed", markup=False)
    out.print(f"  answer    {answer['status']} {answer['code']}", markup=False)
    if "cause" in answer:
        out.print(f"{'':12}{answer['cause']}", markup=False)


def _tell_dry_run(story: Any) -> None:
    out.print(f"{story['host']}{story['path']}: {story['outcome']}", markup=False)
    for step in story["steps"]:
        out.print(f"  {step}", markup=False)
    for one in story["upstreams"]:
        out.print(f"  upstream {one}", markup=False)


def _add_plugin_commands(arguments: list[str]) -> None:
    """Mount plugins' own commands: the one that is asked for, or all of them where somebody wants to see them."""
    wanted = next((argument for argument in arguments if not argument.startswith("-")), "")
    built_in = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    if wanted in built_in or "--version" in arguments:
        return
    offered = {plugin.id for plugin in installed(GROUP)}
    chosen = [wanted] if wanted in offered else sorted(offered)
    for plugin in chosen:
        try:
            found = _plugin(plugin).commands()
        except PluginFailed as exc:
            if wanted in offered:
                raise
            # Installed, and perhaps on nobody's list: no reason to withhold the help text.
            _complain("note", f"{exc}; its commands are left out")
            continue
        for name, command in found:
            app.add_typer(command, name=name)


def _plugin(name: str) -> Hooks:
    """A plugin for its commands alone: those need no settings file, so there is no list of the operator's to go by."""
    from netbird_proxy.sources.decode.claims import CORE_CLAIMS

    return load_hooks([name], core_claims=CORE_CLAIMS)


def _complain(prefix: str, problems: object) -> None:
    """Each problem on a line that says who tells it."""
    for line in str(problems).splitlines():
        err.print(f"{prefix}: {line}", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """The entry point: what goes wrong is one line on standard error, and an exit code."""
    try:
        _add_plugin_commands(sys.argv[1:])
        app()
    except (SettingsError, PluginFailed) as exc:
        _complain("netbird-proxy", exc)
        sys.exit(2)
    except (Failure, ProxyError) as exc:
        _complain("netbird-proxy", exc)
        sys.exit(getattr(exc, "code", 1) if isinstance(exc, Failure) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
