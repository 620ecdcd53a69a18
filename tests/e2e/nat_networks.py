"""An internet of network namespaces, with machines behind NATs: in user space over TUN, or the kernel's by nftables.

Servers run in the internet's own namespace, at `SERVER`. Each site is one machine with one interface, `eth0`, behind a
NAT with an outside address of its own. Nothing here touches the network of the machine that tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.netbird_overlay.nat import Behavior
from tests.netbird_overlay.tun_nat import READY

SERVER = "198.51.100.1"
SECOND_SERVER = "198.51.100.2"
ROOT = Path(__file__).resolve().parents[2]
NETFILTER = {Behavior.PORT_RESTRICTED: "", Behavior.SYMMETRIC: "fully-random"}
"""The behaviors that nftables has, and what its source NAT is called for each."""
# A program that edits /etc, as agents edit resolv.conf, does so in a layer of memory of its own.
PRIVATE_ETC = (
    "mount -t tmpfs none /mnt && mkdir /mnt/up /mnt/work && "
    'mount -t overlay none -o lowerdir=/etc,upperdir=/mnt/up,workdir=/mnt/work /etc && exec "$@"'
)


def require(*tools: str) -> None:
    """Fail in CI, and skip with the reason elsewhere, where there is no root, no TUN or no such tool."""
    missing = [tool for tool in ("ip", *tools) if shutil.which(tool) is None]
    reason = "needs root, to make network namespaces" if os.geteuid() else ""
    if not reason and missing:
        reason = f"needs {', '.join(missing)}"
    if not reason and not Path("/dev/net/tun").exists():
        reason = "needs /dev/net/tun"
    if reason:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def ip(*arguments: str, namespace: str = "") -> None:
    argv = ["ip", *(["-n", namespace] if namespace else []), *arguments]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=10)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"


def inside(namespace: str, *argv: str) -> list[str]:
    """Return the command line that runs a program in a namespace, with an /etc of its own."""
    return ["ip", "netns", "exec", namespace, "sh", "-c", PRIVATE_ETC, "sh", *argv]


@contextmanager
def netns(name: str) -> Iterator[str]:
    ip("netns", "add", name)
    try:
        ip("link", "set", "lo", "up", namespace=name)
        yield name
    finally:
        ip("netns", "del", name)


class Site:
    """One machine behind a NAT.

    Attributes:
        namespace: where its programs run.
        address: its own, and `public` the one that others see.
    """

    def __init__(self, namespace: str, number: int) -> None:
        self.namespace = namespace
        self.address, self.public = f"10.{number}.0.2", f"203.0.113.{number}"

    def command(self, *argv: str) -> list[str]:
        return inside(self.namespace, *argv)

    def cut_udp(self) -> None:
        """Let the NAT drop all datagrams from now on; TCP passes."""
        raise NotImplementedError

    def restore_udp(self) -> None:
        raise NotImplementedError


class TunSite(Site):
    """A site whose NAT is a process of ours."""

    def __init__(self, namespace: str, number: int, process: subprocess.Popen[str]) -> None:
        super().__init__(namespace, number)
        self._process = process

    def _do(self, command: str) -> None:
        stdin, stdout = _pipes(self._process)
        stdin.write(f"{command}\n")
        stdin.flush()
        assert stdout.readline() == "done\n"

    def cut_udp(self) -> None:
        self._do("cut udp")

    def restore_udp(self) -> None:
        self._do("restore udp")

    def lose(self, part: float) -> None:
        """Let the NAT lose this part of the datagrams, in each direction."""
        self._do(f"loss {part}")


class NetfilterSite(Site):
    """A site behind a namespace that forwards, with nftables."""

    def __init__(self, namespace: str, number: int, router: str) -> None:
        super().__init__(namespace, number)
        self._router = router

    def _nft(self, script: str) -> None:
        argv = ["ip", "netns", "exec", self._router, "nft", "-f", "-"]
        done = subprocess.run(argv, input=script, check=False, capture_output=True, text=True, timeout=10)
        assert done.returncode == 0, done.stderr

    def configure(self, behavior: Behavior) -> None:
        # An unsolicited datagram is dropped before it is a connection of the kernel's: else its ports would be taken,
        # and the machine's own first datagram to there would leave from another port.
        self._nft(f"""
            table ip nat {{
              chain out {{
                type nat hook postrouting priority srcnat;
                oifname "wan" snat to {self.public} {NETFILTER[behavior]};
              }}
              chain in {{ type filter hook input priority filter; iifname "wan" drop; }}
              chain through {{ type filter hook forward priority filter; }}
            }}
        """)

    def cut_udp(self) -> None:
        self._nft("add rule ip nat through meta l4proto udp drop\n")

    def restore_udp(self) -> None:
        self._nft("flush chain ip nat through\n")


class Internet:
    """The namespace in which all outside addresses meet."""

    def __init__(self, namespace: str, stack: ExitStack) -> None:
        self.namespace = namespace
        self._stack = stack
        self._sites = 0

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs a server."""
        return inside(self.namespace, *argv)

    def _next(self) -> tuple[str, int, str]:
        self._sites += 1
        number = self._sites
        namespace = self._stack.enter_context(netns(f"{self.namespace}s{number}"))
        return namespace, number, f"nat{number}"

    def behind_tun(self, behavior: Behavior) -> TunSite:
        """Add a machine behind a NAT of ours."""
        namespace, number, device = self._next()
        argv = [sys.executable, "-m", "tests.netbird_overlay.tun_nat", "--inside", namespace]
        argv += ["--outside", self.namespace, "--device", device, "--address", f"203.0.113.{number}"]
        process = self._stack.enter_context(_process([*argv, "--behavior", behavior.value]))
        site = TunSite(namespace, number, process)
        _, stdout = _pipes(process)
        assert stdout.readline() == f"{READY}\n"
        ip("addr", "add", f"{site.address}/24", "dev", "eth0", namespace=namespace)
        ip("link", "set", "eth0", "up", namespace=namespace)
        ip("route", "add", "default", "dev", "eth0", namespace=namespace)
        ip("link", "set", device, "up", namespace=self.namespace)
        ip("route", "add", site.public, "dev", device, namespace=self.namespace)
        return site

    def behind_netfilter(self, behavior: Behavior) -> NetfilterSite:
        """Add a machine behind the kernel's NAT."""
        namespace, number, device = self._next()
        router = self._stack.enter_context(netns(f"{namespace}r"))
        site = NetfilterSite(namespace, number, router)
        ip("link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", "lan", "netns", router)
        ip("link", "add", device, "netns", self.namespace, "type", "veth", "peer", "name", "wan", "netns", router)
        for where, name, address in (
            (namespace, "eth0", f"{site.address}/24"),
            (router, "lan", f"10.{number}.0.1/24"),
            (router, "wan", f"192.168.{number}.2/30"),
            (router, "wan", f"{site.public}/32"),
            (self.namespace, device, f"192.168.{number}.1/30"),
        ):
            ip("addr", "add", address, "dev", name, namespace=where)
            ip("link", "set", name, "up", namespace=where)
        ip("route", "add", "default", "via", f"10.{number}.0.1", namespace=namespace)
        ip("route", "add", "default", "via", f"192.168.{number}.1", namespace=router)
        ip("route", "add", site.public, "via", f"192.168.{number}.2", namespace=self.namespace)
        _forwards(router)
        site.configure(behavior)
        return site

    def behind(self, way: str, behavior: Behavior) -> Site:
        """Add a machine behind a NAT: `tun` or `nftables`."""
        return self.behind_tun(behavior) if way == "tun" else self.behind_netfilter(behavior)


@contextmanager
def internet(number: int = 0) -> Iterator[Internet]:
    """Make an internet without sites, and remove all that was added to it."""
    require("nft")
    with ExitStack() as stack:
        name = stack.enter_context(netns(f"nbi{os.getpid() % 100_000}x{number}"))
        for address in (SERVER, SECOND_SERVER):
            ip("addr", "add", f"{address}/32", "dev", "lo", namespace=name)
        _forwards(name)
        yield Internet(name, stack)


def _forwards(namespace: str) -> None:
    argv = ["ip", "netns", "exec", namespace, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]
    subprocess.run(argv, check=True, capture_output=True, timeout=10)


@contextmanager
def _process(argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout
