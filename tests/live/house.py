"""One proxy process with its mappings in a file, and streams through it that are as fast or slow as a test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.demo.processes import BIN, Process, Processes
from examples.demo.stack import Certificates, free_port

HOST = "service.example.com"


@dataclass(slots=True)
class House:
    """The proxy: where it listens, and what it holds."""

    process: Process
    http: int
    https: int
    directory: Path
    certificates: Certificates

    def memory(self) -> dict[str, int]:
        """Bytes by name, as the kernel counts them: `VmRSS` now, `VmHWM` at the most since `forget_peak`."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        found = (line.split() for line in lines if line.startswith("Vm") and line.endswith("kB"))
        return {name.rstrip(":"): int(size) * 1024 for name, size, _ in found}

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


@asynccontextmanager
async def house(
    directory: Path, upstream: int, *, domain: str = HOST, extra: str = "", options: str = ""
) -> AsyncIterator[House]:
    """A proxy that forwards a domain to a port of this machine, ready.

    Args:
        extra: more tables for its settings file.
        options: more lines for the mapping's target.
    """
    certificates = Certificates.made_in(directory)
    mappings = directory / "mappings.toml"
    mappings.write_text(
        f'[[mapping]]\nid = "service"\ndomain = "{domain}"\npass_host_header = true\n'
        f'[[mapping.path]]\npath = "/"\ntarget = "http://127.0.0.1:{upstream}"\n'
        f"[mapping.path.options]\ndirect_upstream = true\n{options}"
    )
    http, https = free_port(), free_port()
    config = directory / "proxy.toml"
    config.write_text(
        f'plugins = ["direct_upstream"]\nstate_directory = "{directory / "state"}"\nmappings_file = "{mappings}"\n'
        f'[[listen]]\naddress = "127.0.0.1:{http}"\n'
        f'[[listen]]\naddress = "127.0.0.1:{https}"\ntls = true\n'
        f'[[tls.certificates]]\ncert = "{certificates.chain}"\nkey = "{certificates.key}"\n'
        f'[admin]\nsocket = "{directory / "admin.sock"}"\n'
        f"[[direct_upstream.allow]]\naccounts = ['*']\nnetworks = ['127.0.0.1/32']\n{extra}"
    )
    async with Processes(directory / "logs") as processes:
        process = await processes.start("proxy", [str(BIN / "netbird-proxy"), "run", "--config", str(config)])
        await process.until_line(r"proxy\.ready")
        yield House(process, http, https, directory, certificates)
