"""Management, a proxy, upstreams and peers as real processes on loopback, and the handles that the story needs."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import trustme

from examples.demo.api import Api
from examples.demo.processes import BIN, Process, Processes, ProcessFailed

CLUSTER = "proxy.demo.example"
PLUGINS = ("private_service", "identity_headers", "direct_upstream", "tunnel_netstack")
MANAGEMENT_PLUGINS = ("private_service", "direct_upstream", "signal_server", "relay")


@dataclass(frozen=True, slots=True)
class Certificates:
    """A temporary certificate authority, and a certificate for all names under the cluster's domain."""

    authority: Path
    chain: Path
    key: Path

    @classmethod
    def made_in(cls, directory: Path) -> Certificates:
        authority = trustme.CA()
        issued = authority.issue_cert(f"*.{CLUSTER}", CLUSTER)
        made = cls(directory / "ca.pem", directory / "tls.crt", directory / "tls.key")
        authority.cert_pem.write_to_path(made.authority)
        made.chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(made.key)
        made.key.chmod(0o600)
        return made


@dataclass(slots=True)
class Proxy:
    """One proxy process and its addresses."""

    process: Process
    config: Path
    admin: Path
    http: int
    https: int


@dataclass(slots=True)
class Stack:
    """The running processes by name. All files are under `directory`; `host` is the address that peers dial."""

    directory: Path
    processes: Processes
    certificates: Certificates
    host: str = "127.0.0.1"
    api: Api = field(init=False)
    rest: str = ""
    grpc: str = ""
    owner: str = ""
    token: str = ""
    management: Process = field(init=False)
    proxies: dict[str, Proxy] = field(default_factory=dict)
    upstreams: dict[str, int] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    configs: dict[str, Path] = field(default_factory=dict)
    _udp_ranges: dict[str, int] = field(default_factory=dict)

    async def start_management(self, plugins: Sequence[str] = MANAGEMENT_PLUGINS) -> Process:
        """Run `init`, which creates the owner's and the proxy's tokens, then `run`."""
        config = self.directory / "management.toml"
        config.write_text(
            f'state_directory = "{self.directory / "management"}"\n'
            f"plugins = [{', '.join(repr(plugin) for plugin in plugins)}]\n"
            f'[rest]\nlisten = "127.0.0.1:{free_port()}"\n[grpc]\nlisten = "127.0.0.1:{free_port()}"\n'
        )
        argv = [str(BIN / "netbird-management"), "init", "--config", str(config), "--email", "owner@demo.example"]
        code, output, errors = await self.processes.run([*argv, "--proxy-token", "demo", "--json"])
        if code:
            raise ProcessFailed(f"netbird-management init: {errors}")
        made = json.loads(output)
        self.owner, self.token = made["personal_access_token"], made["proxy_token"]
        process = await self.processes.start(
            "management", [str(BIN / "netbird-management"), "run", "--config", str(config)]
        )
        ready = await process.until_line(r"^ready rest=(\S+) grpc=(\S+)")
        self.rest, self.grpc = f"http://{ready[1]}", f"http://{ready[2]}"
        self.api = Api(self.rest, self.owner)
        self.management = process
        return process

    async def restart_management(self) -> Process:
        """Start management again after it ended, with the same state and addresses."""
        config = self.directory / "management.toml"
        self.management = await self.processes.start(
            "management", [str(BIN / "netbird-management"), "run", "--config", str(config)]
        )
        await self.management.until_line(r"^ready rest=(\S+) grpc=(\S+)")
        return self.management

    async def start_proxy(
        self,
        name: str,
        *,
        plugins: Sequence[str] = PLUGINS,
        private: bool = True,
        allow: Sequence[str] = ("127.0.0.1/32",),
        domain: str = CLUSTER,
        extra: str = "",
        wait: bool = True,
        program: Path = BIN / "netbird-proxy",
    ) -> Proxy:
        """Start a proxy. A second start under the same name uses the same settings file and state.

        Args:
            extra: more tables for its settings file.
            wait: wait until it is ready.
            program: the command; another version's can be compared with this one.
        """
        home = self.directory / name
        home.mkdir(mode=0o700, exist_ok=True)
        token_file = home / "token"
        token_file.write_text(self.token)
        token_file.chmod(0o600)
        earlier = self.proxies.get(name)
        http, https = (earlier.http, earlier.https) if earlier else (free_port(), free_port())
        admin = home / "admin.sock"
        config = home / "proxy.toml"
        networks = ", ".join(f'"{network}"' for network in allow)
        direct = f"[[direct_upstream.allow]]\naccounts = ['*']\nnetworks = [{networks}]\n"
        tunnel = f'[tunnel]\nports = "{self._udp_ports(name)}"\nendpoint_host = "{self.host}"\n'
        config.write_text(
            f"plugins = [{', '.join(repr(plugin) for plugin in plugins)}]\n"
            f'state_directory = "{home / "state"}"\n'
            f"private = {str(private).lower()}\n"
            f'[management]\nurl = "{self.grpc}"\ntoken_file = "{token_file}"\n'
            f'domain = "{domain}"\nallow_insecure = true\n'
            f'[[listen]]\naddress = "127.0.0.1:{http}"\n'
            f'[[listen]]\naddress = "127.0.0.1:{https}"\ntls = true\n'
            f'[[tls.certificates]]\ncert = "{self.certificates.chain}"\nkey = "{self.certificates.key}"\n'
            f'[admin]\nsocket = "{admin}"\n'
            + (direct if "direct_upstream" in plugins else "")
            + (tunnel if "tunnel_netstack" in plugins else "")
            + extra
        )
        process = await self.processes.start(name, [str(program), "run", "--config", str(config)])
        if wait:
            await process.until_line(r"proxy\.ready")
        self.proxies[name] = Proxy(process, config, admin, http, https)
        return self.proxies[name]

    def _udp_ports(self, name: str) -> str:
        # Each proxy keeps a port range of its own, so that several can run side by side.
        first = self._udp_ranges.setdefault(name, 20_000 + (os.getpid() % 120) * 100 + 20 * len(self._udp_ranges))
        return f"{first}-{first + 19}"

    async def start_upstream(self, name: str, address: str = "127.0.0.1") -> int:
        """Start an upstream that echoes requests, and return its port."""
        argv = [sys.executable, "-m", "examples.demo.upstream", name, address]
        process = await self.processes.start(f"upstream-{name}", argv)
        self.upstreams[name] = int((await process.until_line(r"^ready (\d+)"))[1])
        return self.upstreams[name]

    async def seen_by(self, name: str) -> int:
        """Return the number of requests that an upstream received."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            answer = await client.get(f"http://127.0.0.1:{self.upstreams[name]}/__seen__")
            return int(answer.json()["seen"])

    async def add_peer(self, name: str, *, user: str = "", groups: Sequence[str] = ()) -> str:
        """Create a WireGuard peer of a user, in groups, with a key from management, and return its overlay address."""
        body = {"name": name, "group_ids": [self.ids[group] for group in groups]}
        if user:
            body["user_id"] = self.ids[user]
        peer = await self.api.post("/peers", body)
        self.ids[f"peer {name}"] = peer["id"]
        self.ids[f"key {name}"] = peer["private_key"]
        return str(peer["ip"])

    async def write_peer_file(self, name: str) -> Path:
        """Write management's WireGuard file with the private key filled in, as a user would import it."""
        text = await self.api.text(f"/peers/{self.ids[f'peer {name}']}/wireguard")
        lines = [
            f"PrivateKey = {self.ids[f'key {name}']}" if "PrivateKey" in line else line for line in text.splitlines()
        ]
        path = self.directory / f"{name}.conf"
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n")
        self.configs[name] = path
        return path

    async def online_clusters(self) -> list[dict[str, Any]]:
        return [cluster for cluster in await self.api.get("/reverse-proxies/clusters") if cluster["online"]]

    async def service_state(self, service: str, proxy: str = "") -> dict[str, Any]:
        """Return a service's state at a proxy, by default the first one; empty while it is unknown."""
        proxies = await self.api.get(f"/reverse-proxies/services/{self.ids[service]}/proxies")
        ids = await self._proxy_id(proxy) if proxy else None
        return next((state for state in proxies if ids is None or state["proxy_id"] == ids), {})

    async def until_service(
        self, service: str, status: str, *, proxy: str = "", timeout: float = 30.0
    ) -> dict[str, Any]:
        """Wait until a service has a status at a proxy, and return its state."""
        state: dict[str, Any] = {}
        async with asyncio.timeout(timeout):
            while True:
                state = await self.service_state(service, proxy)
                if state.get("status") == status or (status == "withheld" and state.get("withheld")):
                    return state
                await asyncio.sleep(0.05)

    async def _proxy_id(self, name: str) -> str:
        return (self.directory / name / "state" / "proxy_id").read_text().strip()

    async def peer_get(self, who: str, url: str, *options: str) -> tuple[int, str, str]:
        """Run `netbird-proxy peer get` with a user's file; returns exit code, head and body, error output."""
        argv = [str(BIN / "netbird-proxy"), "peer", "get", "--config", str(self.configs[who]), "-i", url, *options]
        return await self.processes.run(argv)

    async def start_wiki_server(self, config: str, forward: str) -> Process:
        """Start a peer as upstream: it accepts streams on an overlay port and forwards them to a local one."""
        argv = [str(BIN / "netbird-proxy"), "peer", "serve", "--config", config, forward]
        process = await self.processes.start("peer-wiki-server", argv)
        await process.until_line("ready")
        return process

    async def explain(self, proxy: str, exchange: str) -> str:
        argv = [str(BIN / "netbird-proxy"), "explain", exchange, "--admin", str(self.proxies[proxy].admin)]
        code, output, errors = await self.processes.run(argv)
        if code:
            raise ProcessFailed(f"explain {exchange}: {errors}")
        return output


FIRST_PORT, PORTS = 10_000, 10_000
"""A range below the system's ephemeral ports, so that no other program takes a port before a process binds it, or while
the process restarts."""
_tried = itertools.count(20 * (os.getpid() % (PORTS // 20)))


def free_port() -> int:
    """Return a free TCP port, a different one each time."""
    for _ in range(PORTS):
        port = FIRST_PORT + next(_tried) % PORTS
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no port from {FIRST_PORT} on is free")


@asynccontextmanager
async def stack(directory: Path, *, host: str = "127.0.0.1") -> AsyncIterator[Stack]:
    """An empty stack. All processes started in it end with the context."""
    async with AsyncExitStack() as exits:
        processes = await exits.enter_async_context(Processes(directory / "logs"))
        made = Stack(directory, processes, Certificates.made_in(directory), host)
        try:
            yield made
        finally:
            if made.rest:
                await made.api.__aexit__()
