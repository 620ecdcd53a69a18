"""The systemd units: they start what there is, with options that it takes, and give it the time that it asks for."""

from __future__ import annotations

import shlex
import tomllib
from configparser import RawConfigParser
from pathlib import Path

import pytest
import typer

import netbird_management.cli
import netbird_proxy.operator.cli
from netbird_management.settings import ManagementSettings
from netbird_proxy.process.listeners import DRAIN_MARGIN
from netbird_proxy.process.server import TUNNEL_STOP
from netbird_proxy.process.settings import Limits

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "docs" / "operations").glob("netbird-*"))
PROGRAMS = {"netbird-proxy": netbird_proxy.operator.cli.app, "netbird-management": netbird_management.cli.app}


def read(unit: Path) -> RawConfigParser:
    parser = RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return parser


def service(name: str) -> dict[str, str]:
    return dict(read(ROOT / "docs" / "operations" / f"{name}.service")["Service"])


def test_there_are_units() -> None:
    """One for each host, and the proxy's sockets."""
    assert [unit.name for unit in UNITS] == [
        "netbird-management.service",
        "netbird-proxy.service",
        "netbird-proxy.socket",
    ]


@pytest.mark.parametrize("name", PROGRAMS)
def test_command_is_one_that_the_program_takes(name: str) -> None:
    """Program, command and options."""
    program, command, *options = shlex.split(service(name)["ExecStart"])
    scripts = tomllib.loads(
        (ROOT / ("" if name == "netbird-proxy" else "netbird_management") / "pyproject.toml").read_text()
    )
    assert Path(program).name in scripts["project"]["scripts"]
    known = typer.main.get_command(PROGRAMS[name]).commands[command]  # type: ignore[attr-defined]
    taken = {flag for parameter in known.params for flag in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= taken


@pytest.mark.parametrize("name", PROGRAMS)
def test_process_may_speak_and_is_listened_to(name: str) -> None:
    """It says when it is ready, gives signs of life, and reaches the supervisor's socket."""
    said = service(name)
    assert (said["Type"], said["NotifyAccess"], "AF_UNIX" in said["RestrictAddressFamilies"]) == (
        "notify",
        "main",
        True,
    )
    assert int(said["WatchdogSec"]) >= 10
    assert said["StateDirectory"] == name


def test_stop_has_its_time() -> None:
    """SIGKILL comes after everything that a stop may take: draining, tunnels, the last entries and spans."""
    flush = 10
    assert int(service("netbird-proxy")["TimeoutStopSec"]) > Limits().drain + DRAIN_MARGIN + TUNNEL_STOP + flush
    assert int(service("netbird-management")["TimeoutStopSec"]) > 2 * ManagementSettings().grace
    assert service("netbird-proxy")["RestartPreventExitStatus"] == "2"


def test_sockets_are_those_of_the_readmes_settings() -> None:
    """Another address would stop the start."""
    settings = tomllib.loads((ROOT / "README.md").read_text().split("```toml\n")[1].split("```")[0])
    streams = read(ROOT / "docs" / "operations" / "netbird-proxy.socket")["Socket"]["ListenStream"]
    assert [streams] == [one["address"] for one in settings["listen"]]
