"""The parent process with its operator's interfaces: the admin socket, the health listener and the reload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from netbird_host import logs
from netbird_host.admin_socket import SocketUnavailable, serve_admin_socket
from netbird_host.line_writer import take_turns
from netbird_host.reload import Reload, ReloadReport
from netbird_host.settings import Given, Settings
from netbird_host.systemd import Supervisor
from netbird_proxy.api.errors import ProxyError, SettingsError
from netbird_proxy.api.model import Address
from netbird_proxy.listening.tls import ServerTls
from netbird_proxy.operator.health import serve_health
from netbird_proxy.operator.workers import (
    RELOAD_TIMEOUT,
    AskedWorkers,
    WorkersView,
    latest,
    merged_report,
    merged_rows,
    merged_story,
)
from netbird_proxy.process.loading import Loaded
from netbird_proxy.process.server import sole_cause
from netbird_proxy.process.settings import ProxySettings
from netbird_proxy.process.workers import UNANSWERED
from netbird_proxy.process.workers.division import parent_socket
from netbird_proxy.process.workers.parent import Parent, output_turns

log = structlog.get_logger("netbird_proxy.workers")


class WorkersReload(Reload[ProxySettings]):
    """A reload of all workers, or of none: the parent reads everything first, and asks no worker if that fails."""

    def __init__(self, loaded: Loaded, parent: Parent, workers: AskedWorkers) -> None:
        super().__init__(loaded.given, loaded.read_again, reloadable=())
        self._again = loaded.read_again
        self._parent = parent
        self._workers = workers
        self._turn = asyncio.Lock()

    async def run(self) -> ReloadReport:
        async with self._turn:
            try:
                new = await asyncio.to_thread(self._check)
            except Exception as error:
                report = ReloadReport(kept=[f"all workers keep the old: {line}" for line in str(error).splitlines()])
            else:
                self._parent.adopt(new.sources)
                logs.configure(new.value.log.level, new.value.log.format)
                self.settings = new
                answers, silent = await self._workers.ask("/reload", method="POST", timeout=RELOAD_TIMEOUT)
                report = ReloadReport(**merged_report(answers, silent))
        if report.kept:
            log.warning("workers.reloaded", **report.describe())
        else:
            log.info("workers.reloaded", **report.describe())
        return report

    def _check(self) -> Settings[ProxySettings]:
        new = self._again()
        if new.value.tls.certificates:
            ServerTls(new.value.tls.certificates)
        return new


def application(view: WorkersView, parent: Parent, workers: AskedWorkers, reload: WorkersReload) -> Starlette:
    """The admin socket's application. It has the paths of a single process, and answers for all workers."""

    def answer(body: Any, silent: Sequence[int], status: int = 200) -> JSONResponse:
        headers = {UNANSWERED: ",".join(map(str, silent))} if silent else None
        return JSONResponse(body, status, headers)

    async def explain(request: Request) -> JSONResponse:
        answers, silent = await workers.ask(f"/exchanges/{request.path_params['id']}")
        for number, story in answers.items():
            if story is not None:
                return answer(story | {"worker": number}, ())
        left_out = f"; worker {', '.join(map(str, silent))} did not answer" if silent else ""
        return answer({"message": f"no worker remembers this exchange{left_out}"}, silent, 404)

    async def dry_run(request: Request) -> JSONResponse:
        if "host" not in request.query_params:
            message = "the parameter host is required; path and account are optional"
            return JSONResponse({"message": message}, status_code=400)
        answers, silent = await workers.ask("/explain", dict(request.query_params))
        if not answers:
            return answer({"message": "no worker answered"}, silent, 404)
        return answer(merged_story(answers), silent)

    async def recent(_request: Request) -> JSONResponse:
        answers, silent = await workers.ask("/exchanges")
        return answer(latest(answers), silent)

    async def routes(_request: Request) -> JSONResponse:
        answers, silent = await workers.ask("/routes")
        return answer(merged_rows(answers), silent)

    async def plugins(_request: Request) -> JSONResponse:
        answers, silent = await workers.ask("/plugins")
        return answer(merged_rows(answers), silent)

    async def state(_request: Request) -> JSONResponse:
        answers, silent = await workers.ask("/state")
        seats = [
            {
                "number": seat.number,
                "pid": seat.pid,
                "unready": seat.unready,
                "restarts": seat.restarts,
                "hung": seat.hung,
                "state": answers.get(seat.number),
            }
            for seat in parent.seats
        ]
        counters = dict(sorted(view.numbers()[0].items()))
        unready = view.unready
        return answer({"ready": not unready, "unready": unready, "workers": seats, "counters": counters}, silent)

    async def run_reload(_request: Request) -> JSONResponse:
        return JSONResponse((await reload.run()).describe())

    return Starlette(
        routes=[
            Route("/exchanges", recent),
            Route("/exchanges/{id}", explain),
            Route("/explain", dry_run),
            Route("/routes", routes),
            Route("/plugins", plugins),
            Route("/state", state),
            Route("/reload", run_reload, methods=["POST"]),
        ]
    )


async def run_workers(loaded: Loaded, *, config: Path | None, flags: Sequence[Given], lock: int) -> int:
    """Run all workers until a signal asks for a stop. Returns the exit code.

    Args:
        config, flags: the file and the flags of which `loaded` was read.
        lock: descriptor of the locked state directory.

    Raises:
        SettingsError: an address or socket is not available.
        WorkersFailed: a worker could not start.
    """
    workers = AskedWorkers(loaded.settings)

    @asynccontextmanager
    async def attend(parent: Parent) -> AsyncIterator[Sequence[Address]]:
        view, health = WorkersView(parent), loaded.settings.health
        reload = WorkersReload(loaded, parent, workers)
        try:
            async with (
                serve_admin_socket(application(view, parent, workers, reload), parent_socket(loaded.settings)),
                serve_health(view, health.listen, metrics=health.metrics) as addresses,
                asyncio.TaskGroup() as group,
            ):
                reloading = group.create_task(reload.serve(), name="reload")
                with reload.on_hangup():
                    yield addresses
                reloading.cancel()
        except SocketUnavailable as exc:
            raise SettingsError(f"admin.socket {exc}") from exc

    turns = output_turns()
    take_turns(turns)
    parent = Parent(
        loaded,
        config=config,
        flags=flags,
        lock=lock,
        turns=turns,
        supervisor=Supervisor(),
        attendants=[attend],
    )
    try:
        return await parent.run()
    except BaseExceptionGroup as group:
        if isinstance(cause := sole_cause(group), ProxyError):
            raise cause from cause.__cause__
        raise
