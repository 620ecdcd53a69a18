"""Reloading of a running host: the reloadable parts, the admin socket, and the command."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated

import httpx
import typer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from netbird_host.admin_socket import SocketUnavailable, serve_admin_socket
from netbird_host.reload import Reload, summary
from netbird_host.settings import Settings
from netbird_management.cli.store import Config, read, stop
from netbird_management.settings import ManagementSettings, read_settings

_log = logging.getLogger(__name__)


@asynccontextmanager
async def operated(settings: ManagementSettings, reload: Reload[ManagementSettings]) -> AsyncIterator[None]:
    """Serves the admin socket for `netbird-management reload`. If the socket is unavailable, SIGHUP still reloads."""

    async def answer(_request: Request) -> JSONResponse:
        return JSONResponse((await reload.run()).describe())

    application = Starlette(routes=[Route("/reload", answer, methods=["POST"])])
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(serve_admin_socket(application, _admin_socket(settings)))
        except SocketUnavailable as error:
            _log.warning("admin_socket.unavailable", extra={"reason": str(error)})
        yield


def _admin_socket(settings: ManagementSettings) -> Path:
    return settings.state_directory / "admin.sock"


def host_reload(settings: Settings[ManagementSettings], config: Path | None) -> Reload[ManagementSettings]:
    """The reload of the settings file, which applies the log's level and format."""
    reload = Reload(settings, lambda: read_settings(config)[0], reloadable=("log",))
    reload.register_log(lambda settings: settings.log)
    return reload


def reload_host(
    config: Config = None, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Make the running host reload settings and certificates. Exit code 1 if a change needs a restart or failed."""
    settings, _ = read(config)
    path = _admin_socket(settings.value)
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=30) as client:
            report = client.post("http://management/reload").raise_for_status().json()
    except httpx.HTTPError as error:
        stop(OSError(f"{path}: {error}: is management running?"))
    typer.echo(json.dumps(report) if as_json else "\n".join(summary(report)))
    if report["kept"]:
        raise typer.Exit(1)
