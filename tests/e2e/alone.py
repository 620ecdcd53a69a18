"""A proxy process without management: settings and mappings in files, upstreams in the test itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from examples.demo.processes import BIN, Process, Processes
from examples.demo.stack import free_port


def mapped(**ports: int) -> str:
    """Mappings of NAME.example.com to ports of this machine."""
    return "".join(
        f'[[mapping]]\nid = "{name}"\ndomain = "{name}.example.com"\n'
        f'path = [{{ path = "/", target = "http://127.0.0.1:{port}", options = {{ direct_upstream = true }} }}]\n'
        for name, port in ports.items()
    )


@dataclass(slots=True)
class Alone:
    """One proxy, its files, and where it listens."""

    process: Process
    config: Path
    mappings: Path
    port: int


def written(directory: Path, mappings: str, *, extra: str = "", port: int | None = None) -> tuple[Path, Path, int]:
    """The settings file, the mappings file, and the port that will listen. `extra` are more tables."""
    port = free_port() if port is None else port
    file = directory / "mappings.toml"
    file.write_text(mappings)
    config = directory / "proxy.toml"
    config.write_text(
        f'plugins = ["direct_upstream"]\nstate_directory = "{directory / "state"}"\nmappings_file = "{file}"\n'
        f'[[listen]]\naddress = "127.0.0.1:{port}"\n[admin]\nsocket = "{directory / "admin.sock"}"\n'
        "[[direct_upstream.allow]]\naccounts = ['*']\nnetworks = ['127.0.0.1/32']\n" + extra
    )
    return config, file, port


async def started(
    processes: Processes,
    directory: Path,
    mappings: str,
    *,
    extra: str = "",
    env: Mapping[str, str] | None = None,
) -> Alone:
    """A proxy that is ready."""
    config, file, port = written(directory, mappings, extra=extra)
    process = await processes.start("proxy", [str(BIN / "netbird-proxy"), "run", "--config", str(config)], env=env)
    await process.until_line(r"proxy\.ready")
    return Alone(process, config, file, port)
