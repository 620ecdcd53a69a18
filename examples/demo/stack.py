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


@dataclass(frozen=True, slots=True)
class Certificates:
    """A throw-away authority and the certificate of everything under the cluster's address."""

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
    """One proxy process and how to reach it."""

    process: Process
    config: Path
    admin: Path
    http: int
    https: int


@dataclass(slots=True)
class Stack:
    """What runs, by name. Everything lives under `directory`; `host` is the address that people's peers dial."""

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

    async def start_management(self, plugins: Sequence[str] = ("private_service", "direct_upstream")) -> Process:
        """`init`, then `run`; the owner's and the proxy's tokens come from `init`."""
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
        ready = await process.said(r"^ready rest=(\S+) grpc=(\S+)")
        self.rest, self.grpc = f"http://{ready[1]}", f"http://{ready[2]}"
        self.api = Api(self.rest, self.owner)
        self.management = process
        return process

    async def restart_management(self) -> Process:
        """The same again, after it ended: its state, its addresses."""
        config = self.directory / "management.toml"
        self.management = await self.processes.start(
            "management", [str(BIN / "netbird-management"), "run", "--config", str(config)]
        )
        await self.management.said(r"^ready rest=(\S+) grpc=(\S+)")
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
    ) -> Proxy:
        """One proxy, ready; a second start under the same name uses the same settings file and state.

        Args:
            extra: more tables for its settings file.
            wait: until it says that it is ready.
        """
        home = self.directory / name
        home.mkdir(mode=0o700, exist_ok=True)
        token_file = home / "token"
        token_file.write_text(self.token)
        token_file.chmod(0o600)
        known = self.proxies.get(name)
        http, https = (known.http, known.https) if known else (free_port(), free_port())
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
        process = await self.processes.start(name, [str(BIN / "netbird-proxy"), "run", "--config", str(config)])
        if wait:
            await process.said(r"proxy\.ready")
        self.proxies[name] = Proxy(process, config, admin, http, https)
        return self.proxies[name]

    def _udp_ports(self, name: str) -> str:
        # Each proxy has a range of its own, and keeps it, so that several can run side by side.
        first = self._udp_ranges.setdefault(name, 20_000 + (os.getpid() % 120) * 100 + 20 * len(self._udp_ranges))
        return f"{first}-{first + 19}"

    async def start_upstream(self, name: str, address: str = "127.0.0.1") -> int:
        """An upstream that shows what it received; its port."""
        argv = [sys.executable, "-m", "examples.demo.upstream", name, address]
        process = await self.processes.start(f"upstream-{name}", argv)
        self.upstreams[name] = int((await process.said(r"^ready (\d+)"))[1])
        return self.upstreams[name]

    async def seen_by(self, name: str) -> int:
        """How many requests an upstream has had."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            answer = await client.get(f"http://127.0.0.1:{self.upstreams[name]}/__seen__")
            return int(answer.json()["seen"])

    async def add_peer(self, name: str, *, user: str = "", groups: Sequence[str] = ()) -> str:
        """A WireGuard peer of a user, in groups; its key pair is made by management. Its overlay address."""
        body = {"name": name, "group_ids": [self.ids[group] for group in groups]}
        if user:
            body["user_id"] = self.ids[user]
        peer = await self.api.post("/peers", body)
        self.ids[f"peer {name}"] = peer["id"]
        self.ids[f"key {name}"] = peer["private_key"]
        return str(peer["ip"])

    async def write_peer_file(self, name: str) -> Path:
        """The file that management hands out, with the private key filled in: what a person would import."""
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
        return [one for one in await self.api.get("/reverse-proxies/clusters") if one["online"]]

    async def service_state(self, service: str, proxy: str = "") -> dict[str, Any]:
        """One proxy's state of a service (the first one's if none is named); empty while it is not known."""
        found = await self.api.get(f"/reverse-proxies/services/{self.ids[service]}/proxies")
        ids = await self._proxy_id(proxy) if proxy else None
        return next((state for state in found if ids is None or state["proxy_id"] == ids), {})

    async def until_service(
        self, service: str, status: str, *, proxy: str = "", timeout: float = 30.0
    ) -> dict[str, Any]:
        """Wait until a service has a status at a proxy; that state."""
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
        """`netbird-proxy peer get` with somebody's file: exit code, head and body, error output."""
        argv = [str(BIN / "netbird-proxy"), "peer", "get", "--config", str(self.configs[who]), "-i", url, *options]
        return await self.processes.run(argv)

    async def start_wiki_server(self, config: str, forward: str) -> Process:
        """The peer that is an upstream: accepts streams on an overlay port and hands them to a local one."""
        argv = [str(BIN / "netbird-proxy"), "peer", "serve", "--config", config, forward]
        process = await self.processes.start("peer-wiki-server", argv)
        await process.said("ready")
        return process

    async def explain(self, proxy: str, exchange: str) -> str:
        argv = [str(BIN / "netbird-proxy"), "explain", exchange, "--admin", str(self.proxies[proxy].admin)]
        code, output, errors = await self.processes.run(argv)
        if code:
            raise ProcessFailed(f"explain {exchange}: {errors}")
        return output


FIRST_PORT, PORTS = 10_000, 10_000
"""Below what systems choose from when a program asks for any port, which other programs' connections take at any time:
one of ours is still there when a process binds it a moment later, or again after its restart."""
_tried = itertools.count(20 * (os.getpid() % (PORTS // 20)))


def free_port() -> int:
    """A TCP port that nobody has right now, each time another one."""
    for _ in range(PORTS):
        port = FIRST_PORT + next(_tried) % PORTS
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no port from {FIRST_PORT} on is free")


@asynccontextmanager
async def stack(directory: Path, *, host: str = "127.0.0.1") -> AsyncIterator[Stack]:
    """An empty stack: nothing runs yet; what is started ends with it."""
    async with AsyncExitStack() as exits:
        processes = await exits.enter_async_context(Processes(directory / "logs"))
        made = Stack(directory, processes, Certificates.made_in(directory), host)
        try:
            yield made
        finally:
            if made.rest:
                await made.api.__aexit__()
