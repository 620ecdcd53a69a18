"""A NAT as a process: `python -m tests.netbird_overlay.tun_nat`, between two network namespaces, in user space.

It opens a TUN device in each namespace and rewrites what passes between them. Commands come as lines on standard
input: `cut udp` and `restore udp` for all datagrams, `loss 0.1` for a part of them, `forget` for a restart of the NAT.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from random import Random

from netbird_overlay.endpoints import Endpoint
from tests.netbird_overlay.nat import Behavior, NatTable

TCP, UDP = 6, 17
CHECKSUM_AT = {TCP: 16, UDP: 6}
READY = "ready"


class Rewriter:
    """Rewrites IPv4 packets with UDP or TCP. All else is dropped: fragments, ICMP, IPv6.

    TCP passes as through a port-restricted NAT always, since only clients are behind it.
    """

    def __init__(self, behavior: Behavior, address: str, random: Random, *, lifetime: float = 60.0) -> None:
        self.tables = {
            UDP: NatTable(behavior, address, random, lifetime=lifetime),
            TCP: NatTable(Behavior.PORT_RESTRICTED, address, random, lifetime=7200),
        }
        self.loss = 0.0
        self.cut = False
        self._random = random

    def command(self, line: str) -> None:
        match line.split():
            case ["cut", "udp"]:
                self.cut = True
            case ["restore", "udp"]:
                self.cut = False
            case ["loss", part]:
                self.loss = float(part)
            case ["forget"]:
                for table in self.tables.values():
                    table.forget()
            case _:
                raise ValueError(f"unknown command {line!r}")

    def outgoing(self, packet: bytes, now: float) -> bytes | None:
        """Return the packet as it leaves to the outside, or None if it is dropped."""
        if (protocol := self._protocol(packet)) is None:
            return None
        source, destination = _ends(packet)
        return _rewritten(packet, protocol, 12, 20, self.tables[protocol].outgoing(source, destination, now))

    def incoming(self, packet: bytes, now: float) -> bytes | None:
        """Return the packet as it goes to the inside, or None if it is dropped."""
        if (protocol := self._protocol(packet)) is None:
            return None
        source, destination = _ends(packet)
        inside = self.tables[protocol].incoming(source, destination.port, now)
        return None if inside is None else _rewritten(packet, protocol, 16, 22, inside)

    def _protocol(self, packet: bytes) -> int | None:
        """Return the protocol of a packet that may pass."""
        if len(packet) < 28 or packet[0] != 0x45 or int.from_bytes(packet[6:8]) & 0x3FFF:
            return None
        protocol = packet[9]
        if protocol not in self.tables or len(packet) < 20 + CHECKSUM_AT[protocol] + 2:
            return None
        if protocol == UDP and (self.cut or self._random.random() < self.loss):
            return None
        return protocol


def _ends(packet: bytes) -> tuple[Endpoint, Endpoint]:
    source, destination, source_port, destination_port = struct.unpack_from("!4s4sHH", packet, 12)
    return (
        Endpoint(".".join(map(str, source)), source_port),
        Endpoint(".".join(map(str, destination)), destination_port),
    )


def _rewritten(packet: bytes, protocol: int, address_at: int, port_at: int, endpoint: Endpoint) -> bytes:
    """Return the packet with another address and port, the checksums updated (RFC 1624)."""
    result = bytearray(packet)
    address, port = bytes(map(int, endpoint.host.split("."))), endpoint.port.to_bytes(2)
    old_address, old_port = packet[address_at : address_at + 4], packet[port_at : port_at + 2]
    result[address_at : address_at + 4], result[port_at : port_at + 2] = address, port
    _update(result, 10, old_address, address)
    checksum_at = 20 + CHECKSUM_AT[protocol]
    if protocol == TCP or result[checksum_at : checksum_at + 2] != b"\x00\x00":
        _update(result, checksum_at, old_address + old_port, address + port)
        if protocol == UDP and result[checksum_at : checksum_at + 2] == b"\x00\x00":
            result[checksum_at : checksum_at + 2] = b"\xff\xff"
    return bytes(result)


def _update(packet: bytearray, at: int, old: bytes, new: bytes) -> None:
    total = ~int.from_bytes(packet[at : at + 2]) & 0xFFFF
    for start in range(0, len(old), 2):
        total += (~int.from_bytes(old[start : start + 2]) & 0xFFFF) + int.from_bytes(new[start : start + 2])
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    packet[at : at + 2] = (~total & 0xFFFF).to_bytes(2)


# The process -----------------------------------------------------------------------------------------------------

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN_WITHOUT_HEADER = 0x1001


def open_tun(namespace: str, name: str) -> int:
    """Make a TUN device in a named network namespace, and return its descriptor. This process moves there."""
    with open(f"/run/netns/{namespace}") as there:
        if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"no way into the namespace {namespace}")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_WITHOUT_HEADER))
    return descriptor


def carry(rewriter: Rewriter, inside: int, outside: int) -> None:
    """Pass packets and take commands until standard input ends."""
    commands = b""
    while True:
        readable, _, _ = select.select([inside, outside, 0], [], [])
        now = time.monotonic()
        for source, target, rewrite in (
            (inside, outside, rewriter.outgoing),
            (outside, inside, rewriter.incoming),
        ):
            if source not in readable:
                continue
            for _ in range(64):
                try:
                    packet = rewrite(os.read(source, 65536), now)
                    if packet is not None:
                        os.write(target, packet)
                except BlockingIOError:
                    break
                except OSError:  # the device is down, or its queue is full
                    continue
        if 0 in readable:
            received = os.read(0, 4096)
            if not received:
                return
            *lines, commands = (commands + received).split(b"\n")
            for line in lines:
                rewriter.command(line.decode())
                print("done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inside", required=True, help="namespace behind the NAT")
    parser.add_argument("--outside", required=True, help="namespace that is the internet")
    parser.add_argument("--device", required=True, help="name of the device in the outside namespace")
    parser.add_argument("--address", required=True, help="outside address")
    parser.add_argument("--behavior", required=True, choices=[each.value for each in Behavior])
    options = parser.parse_args()
    inside, outside = open_tun(options.inside, "eth0"), open_tun(options.outside, options.device)
    print(READY, flush=True)
    carry(Rewriter(Behavior(options.behavior), options.address, Random()), inside, outside)


if __name__ == "__main__":
    sys.exit(main())
