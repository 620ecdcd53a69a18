"""STUN over UDP (RFC 8489, binding requests only): it tells a client the address that its datagrams come from.

Anybody may ask, and the source of a datagram may be forged. So an answer is hardly longer than its request, each source
has an allowance, and the table of sources is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from netbird_host.buckets import Bucket
from netbird_host.sources import source_of
from netbird_relay.limits import Allowances

MAGIC: Final = 0x2112A442
HEADER_BYTES: Final = 20
BINDING_REQUEST: Final = 0x0001
BINDING_SUCCESS: Final = 0x0101
BINDING_ERROR: Final = 0x0111
XOR_MAPPED_ADDRESS: Final = 0x0020
ERROR_CODE: Final = 0x0009
UNKNOWN_ATTRIBUTES: Final = 0x000A
_IGNORED: Final = frozenset({0x0006, 0x0008, 0x001C, 0x0024, 0x0025})
"""Credentials and ICE's attributes: no credential is asked for, so they have no meaning here."""
_OPTIONAL: Final = 0x8000
_MAX_REQUEST_BYTES: Final = 548
_MAX_UNKNOWN: Final = 4

ANSWERS_A_SECOND, ANSWERS_AT_ONCE = 20.0, 100.0
"""Rate and burst for one source: an IPv4 address, or an IPv6 /64. Many agents may be behind one."""
ALL_A_SECOND: Final = 5000.0
"""Rate for all sources together, because sources can be forged."""
BATCH: Final = 64
"""Datagrams answered before other callbacks of the loop run."""


def answer(request: bytes, host: str, port: int) -> bytes | None:
    """The answer to a datagram from this address; None if it is not a binding request."""
    if not HEADER_BYTES <= len(request) <= _MAX_REQUEST_BYTES:
        return None
    kind, length, magic = struct.unpack_from("!HHI", request)
    if kind != BINDING_REQUEST or magic != MAGIC or length != len(request) - HEADER_BYTES or length % 4:
        return None
    unknown: list[int] = []
    at = HEADER_BYTES
    while at < len(request):
        name, size = struct.unpack_from("!HH", request, at)
        at += 4 + (size + 3) // 4 * 4
        if name < _OPTIONAL and name not in _IGNORED:
            unknown.append(name)
    if at != len(request):
        return None
    transaction = request[8:HEADER_BYTES]
    if unknown:
        return _message(BINDING_ERROR, transaction, _unknown_attributes(unknown[:_MAX_UNKNOWN]))
    return _message(BINDING_SUCCESS, transaction, _xor_mapped_address(host, port, transaction))


def _message(kind: int, transaction: bytes, attributes: bytes) -> bytes:
    return struct.pack("!HHI", kind, len(attributes), MAGIC) + transaction + attributes


def _xor_mapped_address(host: str, port: int, transaction: bytes) -> bytes:
    address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    mask = struct.pack("!I", MAGIC) + transaction
    packed = bytes(byte ^ key for byte, key in zip(address.packed, mask, strict=False))
    family = 1 if address.version == 4 else 2
    return struct.pack("!HHBBH", XOR_MAPPED_ADDRESS, 4 + len(packed), 0, family, port ^ MAGIC >> 16) + packed


def _unknown_attributes(names: list[int]) -> bytes:
    padded = names + names[-1:] if len(names) % 2 else names
    error = struct.pack("!HHBBBB", ERROR_CODE, 4, 0, 0, 4, 20)
    return error + struct.pack(f"!HH{len(padded)}H", UNKNOWN_ATTRIBUTES, 2 * len(names), *padded)


class Sources:
    """Allowances by source, and one for all together."""

    def __init__(self, now: float) -> None:
        self._by_source = Allowances(ANSWERS_A_SECOND, ANSWERS_AT_ONCE)
        self._all = Bucket(ALL_A_SECOND, ALL_A_SECOND, now)

    def __len__(self) -> int:
        return len(self._by_source)

    def may_answer(self, host: str, now: float) -> bool:
        return self._by_source.spend(source_of(host), now) and self._all.spend(1.0, now)


class StunServer:
    """Answers on one bound, non-blocking UDP socket, from construction to `close`. The socket stays the caller's."""

    def __init__(self, sock: socket.socket, counters: Counter[str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._counters = counters
        self._sources = Sources(self._loop.time())
        self._loop.add_reader(sock.fileno(), self._turn)

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())

    def _turn(self) -> None:
        """Answer what has arrived. A datagram that cannot be sent at once is dropped: its client asks again."""
        for _ in range(BATCH):
            try:
                data, address = self._socket.recvfrom(_MAX_REQUEST_BYTES + 1)
            except OSError:  # nothing left, or a report that an earlier answer was not delivered
                return
            reply = answer(data, address[0], address[1])
            if reply is None:
                self._counters["stun_ignored"] += 1
            elif not self._sources.may_answer(address[0], self._loop.time()):
                self._counters["stun_refused"] += 1
            else:
                self._counters["stun_answered"] += 1
                with contextlib.suppress(OSError):
                    self._socket.sendto(reply, address)
