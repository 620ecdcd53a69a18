"""The command `netbird-proxy`: runs a proxy, checks its settings, and queries a running one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from netbird_host.plugins import installed
from netbird_proxy.api.errors import PluginFailed, ProxyError, SettingsError
from netbird_proxy.process.workers import UNANSWERED
from netbird_proxy.routing.hooks import GROUP, Hooks, load_hooks

if TYPE_CHECKING:
    # The server is imported by the commands that need it: a plugin's command starts a second sooner without it.
    from netbird_host.settings import Given
    from netbird_proxy.process.loading import Loaded

app = typer.Typer(
    name="netbird-proxy",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# A program that reads from a pipe expects one line per entry, whatever its length.
out = Console() if sys.stdout.isatty() else Console(width=1000)
err = Console(stderr=True)

Config = Annotated[
    Path | None, typer.Option("--config", "-c", envvar="NETBIRD_PROXY_CONFIG", help="Settings file (TOML).")
]
Socket = Annotated[
    Path | None, typer.Option("--admin", envvar="NETBIRD_PROXY_ADMIN", help="Admin socket of the running proxy.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Failure(Exception):
    """A failure that the command reports on standard error before it exits with `code`."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def _version(requested: bool) -> None:
    if requested:
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
    plugin: Annotated[list[str] | None, typer.Option("--plugin", help="Replaces `plugins` of the file.")] = None,
    private: Annotated[bool | None, typer.Option("--private/--no-private", help="Listen inside tunnels.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Number of processes that serve together.")] = None,
) -> None:
    """Run the proxy until SIGTERM or SIGINT."""
    import uvloop

    from netbird_host import logs
    from netbird_host.running import run_process
    from netbird_proxy.process.state import lock_state

    flags = _flags(plugin, private, workers)
    loaded = _load(config, flags)
    lock = lock_state(loaded.settings.state_directory)
    logs.configure(loaded.settings.log.level, loaded.settings.log.format)
    if loaded.settings.process.workers == 1:
        raise typer.Exit(run_process(_serve(loaded), uvloop.new_event_loop))
    from netbird_proxy.operator.parent import run_workers
    from netbird_proxy.process.workers.parent import WorkersFailed

    try:
        raise typer.Exit(run_process(run_workers(loaded, config=config, flags=flags, lock=lock)))
    except WorkersFailed as failed:
        raise Failure(str(failed), failed.code) from failed


@app.command()
def check(
    config: Config = None,
    show: Annotated[bool, typer.Option("--show", help="Print each setting with its source.")] = False,
) -> None:
    """Check settings, plugins and the mappings file as a start would, without starting the proxy."""
    from netbird_proxy.process.loading import judge_files

    loaded = _load(config)
    judge_files(loaded)
    if show:
        table = Table("setting", "value", "from", box=None, pad_edge=False)
        for shown in loaded.shown:
            _add_row(table, shown.path, shown.value, shown.source)
        out.print(table)
    for name in loaded.ignored:
        err.print(f"note: {name} is set, but this proxy has no such setting", markup=False)
    for renamed in loaded.given.renamed:
        err.print(f"note: {renamed.old} is now {renamed.new}", markup=False)
    out.print(f"ok: {len(loaded.hooks.plugins)} plugins, {len(loaded.settings.listen)} host listeners")


@app.command()
def explain(
    what: Annotated[str, typer.Argument(help="The id of an exchange, or a host.")],
    path: Annotated[str | None, typer.Argument(help="With a host: the path of the request.")] = None,
    account: Annotated[str | None, typer.Option(help="Assume a request through this account's tunnel.")] = None,
    config: Config = None,
    admin: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Explain how an exchange ended; or, with HOST and PATH, the route and steps of a request."""
    if path is None and "." not in what:
        story = _ask(config, admin, f"/exchanges/{what}")
        _print(story, as_json, _print_exchange)
        return
    query = {"host": what, "path": path or "/", **({"account": account} if account else {})}
    _print(_ask(config, admin, "/explain", query), as_json, _print_dry_run)


@app.command()
def plugins(config: Config = None, admin: Socket = None, as_json: AsJson = False) -> None:
    """List the plugins of a running proxy, in their order."""

    def render(rows: Any) -> None:
        table = Table("plugin", "version", "hooks", "claims", "what it does", box=None, pad_edge=False)
        for row in rows:
            cells = row["id"], row["version"], " ".join(row["hooks"]), " ".join(row["claims"]), row["summary"]
            _add_row(table, *cells)
        out.print(table)

    _print(_ask(config, admin, "/plugins"), as_json, render)


@app.command()
def routes(config: Config = None, admin: Socket = None, as_json: AsJson = False) -> None:
    """List the routes of a running proxy, and the mappings that it refuses with the reasons."""

    def render(rows: Any) -> None:
        table = Table("host", "prefix", "service", "upstreams", "steps", box=None, pad_edge=False)
        for row in rows:
            state = f"refused: {row['refused']}" if row["refused"] else " → ".join(row["steps"])
            state += _of_workers(row)
            _add_row(table, row["host"], row["prefix"], row["service"], " ".join(row["upstreams"]), state)
        out.print(table)

    _print(_ask(config, admin, "/routes"), as_json, render)


@app.command()
def reload(config: Config = None, admin: Socket = None, as_json: AsJson = False) -> None:
    """Reload settings, certificates and log files of a running proxy. Open connections stay open.

    Exit code 1 if a new value cannot be used; the previous one stays in force.
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

    # Created inside the loop, because the channel to management belongs to the loop that runs at its creation.
    return await operated(loaded, supervisor=Supervisor()).run()


def _flags(plugins_: list[str] | None, private: bool | None, workers: int | None) -> list[Given]:
    from netbird_host.settings import Given

    flags: list[Given] = []
    if plugins_:
        flags.append(Given(("plugins",), plugins_, "flag --plugin"))
    if private is not None:
        flags.append(Given(("private",), private, "flag --private"))
    if workers is not None:
        flags.append(Given(("process", "workers"), workers, "flag --workers"))
    return flags


def _load(config: Path | None, flags: Sequence[Given] = ()) -> Loaded:
    from netbird_proxy.process.loading import load
    from netbird_proxy.process.settings import read_settings

    try:
        return load(read_settings(config, flags=flags))
    except SettingsError as exc:
        if config is not None:
            raise
        raise SettingsError(f"{exc}\nno settings file was given: use --config FILE or NETBIRD_PROXY_CONFIG") from exc


def _socket(config: Path | None, admin: Path | None) -> Path:
    """Return the admin socket: of the flag, else of the settings file, else the only one on this machine."""
    from netbird_proxy.process.state import default_socket, proxy_id

    if admin is not None:
        return admin
    if config is not None:
        settings = _load(config).settings
        return settings.admin.socket or default_socket(proxy_id(settings.state_directory))
    directory = default_socket("any").parent
    sockets = sorted(directory.glob("*.sock")) if directory.is_dir() else []
    if len(sockets) == 1:
        return sockets[0]
    if not sockets:
        raise Failure(f"no running proxy in {directory}: give its socket with --admin, or its file with --config")
    raise Failure("more than one proxy runs on this machine; choose one with --admin:\n" + "\n".join(map(str, sockets)))


def _ask(
    config: Path | None, admin: Path | None, path: str, query: dict[str, str] | None = None, *, method: str = "GET"
) -> Any:
    import httpx  # imported here: it would delay the start of the proxy by a quarter of a second

    socket = _socket(config, admin)
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=10) as client:
            answer = client.request(method, f"http://proxy{path}", params=query)
    except httpx.HTTPError as exc:
        raise Failure(f"{socket}: {exc}: is the proxy running?") from exc
    if answer.status_code == 404:
        raise Failure(answer.json()["message"])
    answer.raise_for_status()
    if silent := answer.headers.get(UNANSWERED):
        _complain("note", f"worker {silent} did not answer")
    return answer.json()


def _of_workers(row: Any) -> str:
    """The workers that have a row, if not all of them have it."""
    return f" (worker {', '.join(map(str, row['workers']))} only)" if "workers" in row else ""


def _add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text. rich would read `[…]` as markup, and a terminal would obey control characters."""
    table.add_row(*(Text("".join(c if c.isprintable() else repr(c)[1:-1] for c in cell)) for cell in cells))


def _print(document: Any, as_json: bool, render: Any) -> None:
    if as_json:
        out.print_json(json.dumps(document))
    else:
        render(document)


def _print_exchange(story: Any) -> None:
    origin, answer = story["from"], story["answer"]
    out.print(f"{story['request']}", markup=False)
    if "worker" in story:
        out.print(f"  worker    {story['worker']}", markup=False)
    out.print(f"  at        {story['at']}", markup=False)
    account = f", tunnel of account {origin['account']}" if origin["account"] else ""
    out.print(f"  from      {origin['peer']} on {origin['listener']}{account}", markup=False)
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
    for attempt in story["upstream"]:
        out.print(f"  upstream  {attempt['to']}: {attempt['error'] or attempt['status']}", markup=False)
    if not story["upstream"]:
        out.print("  upstream  not dialed", markup=False)
    out.print(f"  answer    {answer['status']} {answer['code']}", markup=False)
    if "cause" in answer:
        out.print(f"{'':12}{answer['cause']}", markup=False)


def _print_dry_run(story: Any) -> None:
    for number, differing in story.get("workers", {}).items():
        out.print(f"worker {number}:", markup=False)
        _print_dry_run(differing)
    if "workers" in story:
        return
    out.print(f"{story['host']}{story['path']}: {story['outcome']}", markup=False)
    for step in story["steps"]:
        out.print(f"  {step}", markup=False)
    for upstream in story["upstreams"]:
        out.print(f"  upstream {upstream}", markup=False)


def _add_plugin_commands(arguments: list[str]) -> None:
    """Add the commands of plugins: of the one that is named, or of all for the help text."""
    command_name = next((argument for argument in arguments if not argument.startswith("-")), "")
    built_in = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    if command_name in built_in or "--version" in arguments:
        return
    offered = {plugin.id for plugin in installed(GROUP)}
    chosen = [command_name] if command_name in offered else sorted(offered)
    for plugin in chosen:
        try:
            commands = _plugin(plugin).commands()
        except PluginFailed as exc:
            if command_name in offered:
                raise
            # The plugin is installed but may not be configured, so the help text is shown without it.
            _complain("note", f"{exc}; its commands are left out")
            continue
        for name, command in commands:
            app.add_typer(command, name=name)


def _plugin(name: str) -> Hooks:
    """Load one plugin for its commands, which need no settings file."""
    from netbird_proxy.sources.decode.claims import CORE_CLAIMS

    return load_hooks([name], core_claims=CORE_CLAIMS)


def _complain(prefix: str, problems: object) -> None:
    """Print each line of `problems` on standard error, after the prefix."""
    for line in str(problems).splitlines():
        err.print(f"{prefix}: {line}", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command. A failure is one line on standard error, and an exit code."""
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
