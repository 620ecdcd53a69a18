"""A stock WireGuard client, configured from the file that management hands out, reaches private services."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from ipaddress import ip_address
from itertools import product
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from examples.demo.calls import ALICE_SEEN, LOBBY, WIKI, Answer, expect, identity_seen
from examples.demo.stack import Stack, stack
from examples.demo.story import (
    management_starts,
    peers_files,
    people_and_peers,
    proxy_connects,
    services,
)
from netbird_overlay.wgconf import parse_config
from tests.e2e.namespace import Namespace, namespace

pytestmark = [pytest.mark.live, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Stack, Namespace]]:
    """The story up to the peers' files, with a proxy that people reach over a cable."""
    directory: Path = tmp_path_factory.mktemp("stock")
    with namespace() as there:
        async with stack(directory, host=there.host_address) as running:
            for step in (management_starts, proxy_connects, people_and_peers, services, peers_files):
                await step(running)
            yield running, there


def proxy_address(config: Path) -> str:
    """The one address that a peer's file leads to."""
    return str(parse_config(config.read_text()).peers[0].allowed_ips[0].network_address)


async def curl(there: Namespace, config: Path, url: str, *options: str) -> Answer:
    """curl as that peer would use it, names resolved to the one address that its file leads to."""
    overlay = proxy_address(config)
    host = url.split("/")[2]
    resolve = [part for port in (80, 443) for part in ("--resolve", f"{host}:{port}:{overlay}")]
    argv = ["curl", "-sS", "--max-time", "20", "-i", *resolve, *options, url]
    done = await asyncio.to_thread(there.run, *argv)
    return answer_of(done.stdout)


def answer_of(output: str) -> Answer:
    """What `curl -i` printed."""
    head, _, body = output.partition("\n\n")
    return Answer(int(head.split(" ", 2)[1]), httpx.Headers(), body)


async def test_member_is_served_and_known(house: tuple[Stack, Namespace]) -> None:
    """alice by wireguard-go: 200 by HTTP and HTTPS, and the upstream sees her name and groups, and no forged ones."""
    running, there = house
    config = running.configs["alice-laptop"]
    with there.wireguard(config):
        for url, options in (
            (f"http://{WIKI}/", ["-H", "X-NetBird-User: mallory", "-H", "x_netbird_groups: admins"]),
            (f"https://{WIKI}/", ["--cacert", str(running.certificates.authority)]),
        ):
            expect(url, identity_seen(await curl(there, config, url, *options)), ALICE_SEEN)


async def test_member_is_served_and_known_over_ipv6(house: tuple[Stack, Namespace]) -> None:
    """The same file leads to the proxy by IPv6 inside the tunnel, whose packets themselves go over IPv4."""
    running, there = house
    config = running.configs["alice-laptop"]
    overlay = parse_config(config.read_text()).peers[0].allowed_ips[1].network_address
    assert overlay.version == 6
    with there.wireguard(config):
        argv = ["curl", "-sS", "--max-time", "20", "-i", "-6", "--resolve", f"{WIKI}:80:[{overlay}]", f"http://{WIKI}/"]
        done = await asyncio.to_thread(there.run, *argv)
        expect("wiki", identity_seen(answer_of(done.stdout)), ALICE_SEEN)


async def test_member_of_something_else_is_refused(house: tuple[Stack, Namespace]) -> None:
    """bob by wireguard-go: lobby 200, wiki 403, and wiki's upstream has not heard of him."""
    running, there = house
    config = running.configs["bob-laptop"]
    with there.wireguard(config):
        expect("lobby", (await curl(there, config, f"http://{LOBBY}/")).status, 200)
        before = await running.seen_by("wiki")
        expect("wiki", (await curl(there, config, f"http://{WIKI}/")).status, 403)

        expect("requests at wiki's upstream", await running.seen_by("wiki"), before)


async def test_stranger_gets_no_handshake(house: tuple[Stack, Namespace]) -> None:
    """A key that no service names: WireGuard itself stays silent, so curl finds nobody."""
    running, there = house
    config = running.configs["alice-laptop"]
    key = there.run("wg", "genkey").stdout.strip()
    stranger = running.directory / "stranger.conf"
    stranger.touch(mode=0o600)
    stranger.write_text(
        "\n".join(
            f"PrivateKey = {key}" if line.startswith("PrivateKey") else line for line in config.read_text().splitlines()
        )
    )
    with there.wireguard(stranger) as name:
        url = f"http://{proxy_address(config)}/"
        done = await asyncio.to_thread(there.run, "curl", "--max-time", "3", url, check=False)

        expect("curl's exit code", done.returncode, 28)
        handshakes = there.run("wg", "show", name, "latest-handshakes").stdout.split()
        expect("latest handshake", handshakes[-1], "0")


ASK = """
import sys, dns.message, dns.query
name, server = sys.argv[1:]
for exchange in (dns.query.udp, dns.query.tcp):
    answer = exchange(dns.message.make_query(name, "A"), server, timeout=10)
    print(answer.rcode(), *(record.to_text() for rrset in answer.answer for record in rrset))
"""


async def test_names_are_asked_of_the_tunnel(house: tuple[Stack, Namespace]) -> None:
    """A device with the plain app and no list of names: the file says whom to ask, and the answer leads to wiki."""
    running, there = house
    expect("exit code", await running.proxies["proxy"].process.stop(), 0)
    await running.start_proxy("proxy", extra="dns = true\n")  # in the table [tunnel], which is the last one
    await running.until_service("wiki", "active")
    config = await running.write_peer_file("alice-laptop")
    overlay = proxy_address(config)
    (servers,) = re.findall(r"^DNS = (.*)$", config.read_text(), flags=re.MULTILINE)
    assert servers.split(", ")[0] == overlay
    assert [ip_address(server).version for server in servers.split(", ")] == [4, 6]

    with there.wireguard(config):
        ask = [sys.executable, "-c", ASK]
        for server, name in product(servers.split(", "), (WIKI, "elsewhere.test")):
            answer = f"0 {overlay}" if name == WIKI else "5"
            done = await asyncio.to_thread(there.run, *ask, name, server)
            assert done.stdout.splitlines() == [answer, answer]
        expect("wiki", identity_seen(await curl(there, config, f"http://{WIKI}/")), ALICE_SEEN)
