"""Reload of a running host: the settings in force afterwards, and the report."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from pydantic import BaseModel

from netbird_host.reload import Reload, ReloadReport, summary
from netbird_host.setting_types import Secret, Section
from netbird_host.settings import Settings, SettingsError, Sources, differences


class Log(Section):
    level: str = "info"


class Example(Section):
    log: Log = Log()
    listen: tuple[str, ...] = ("a",)
    token: Secret = Secret("one")


class Options(BaseModel):
    size: int = 1


def settings(size: int = 1, **values: object) -> Settings[Example]:
    return Settings(Example.model_validate(values), {"plugin": Options(size=size)}, Sources())


async def test_what_steps_cannot_put_in_force_is_named() -> None:
    """The report names changed settings that need a restart, secrets and plugins' sections included."""
    old, new = settings(), settings(2, log={"level": "debug"}, listen=["b"], token="two")
    reload = Reload(old, lambda: new, reloadable=("log",))
    reload.register("log", lambda report: report.done.append(f"level {reload.settings.value.log.level}"))

    report = await reload.run()

    assert differences(old, new) == ["log.level", "listen", "token", "plugin.size"]
    assert report.describe() == {
        "done": ["level debug"],
        "kept": [],
        "needs_restart": ["listen", "token", "plugin.size"],
    }
    assert summary(report.describe())[:2] == ["done: level debug", "needs a restart: listen"]
    assert summary(ReloadReport().describe()) == ["nothing has changed"]


async def test_what_cannot_be_used_stays_and_hinders_nothing_else() -> None:
    """Settings that cannot be read and steps that fail are reported, and the other steps still run."""
    old = settings()

    def broken() -> Settings[Example]:
        raise SettingsError(["listen: no", "log: no"])

    def fail(_report: ReloadReport) -> None:
        raise OSError("the file is gone")

    reload = Reload(old, broken, reloadable=("log",))
    reload.register("certificate", fail)
    reload.register("log", lambda report: report.done.append("opened"))

    report = await reload.run()

    assert report.kept == ["settings: listen: no", "settings: log: no", "certificate: the file is gone"]
    assert report.done == ["opened"]
    assert reload.settings is old


async def test_hangup_asks_for_a_reload_and_ends_nothing() -> None:
    """Each SIGHUP inside the context causes a reload; a later one is ignored."""
    ran: asyncio.Queue[None] = asyncio.Queue()
    reload = Reload(settings(), settings, reloadable=())
    reload.register("seen", lambda _report: ran.put_nowait(None))
    before: Callable[..., object] | int | None = signal.getsignal(signal.SIGHUP)
    try:
        with reload.on_hangup():
            async with asyncio.timeout(10), asyncio.TaskGroup() as group:
                serving = group.create_task(reload.serve())
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGHUP)
                    await ran.get()
                serving.cancel()
        os.kill(os.getpid(), signal.SIGHUP)
        assert ran.empty()
    finally:
        signal.signal(signal.SIGHUP, before)
