"""The listening sockets of all workers. The parent keeps them open, so that no worker's end loses a waiting connection.

Each worker has sockets of its own, between which the kernel spreads connections (`SO_REUSEPORT`); sockets that systemd
opened are shared by all workers instead.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from itertools import chain

from netbird_proxy.api.model import Address
from netbird_proxy.listening.sockets import bound_sockets, unavailable
from netbird_proxy.process.listeners import activated
from netbird_proxy.process.settings import Listen
from netbird_proxy.process.workers.hello import Descriptors


class ParentSockets:
    """The sockets by worker and `[[listen]]` section."""

    def __init__(self, workers: Sequence[Sequence[Sequence[socket.socket]]]) -> None:
        self._workers = workers

    @classmethod
    async def bind(cls, listen: Sequence[Listen], workers: int) -> ParentSockets:
        """Bind all sockets. None listens before its worker is ready, unless systemd opened it.

        Raises:
            SettingsError: an address is not available, or systemd opened a socket that is for no section.
        """
        shared = activated(listen)
        sections = []
        try:
            for section, inherited in zip(listen, shared, strict=True):
                sections.append([inherited] * workers if inherited else await _spread(section.address, workers))
        except BaseException:
            for sock in chain.from_iterable(chain.from_iterable(sections)):
                sock.close()
            raise
        return cls([[section[worker] for section in sections] for worker in range(workers)])

    @property
    def addresses(self) -> list[Address]:
        """The address of each section's first socket."""
        return [Address(*section[0].getsockname()[:2]) for section in self._workers[0]]

    def own(self, number: int) -> Descriptors:
        """The descriptors of a worker, which is counted from 1."""
        return [[sock.fileno() for sock in section] for section in self._workers[number - 1]]

    def others(self, number: int) -> dict[int, Descriptors]:
        """The descriptors of the other workers, without those that the worker has too."""
        own = set(chain.from_iterable(self.own(number)))
        return {
            other: [[fd for fd in section if fd not in own] for section in self.own(other)]
            for other in range(1, len(self._workers) + 1)
            if other != number
        }

    def descriptors(self) -> set[int]:
        return {sock.fileno() for sock in self._all()}

    def close(self) -> None:
        """Close the parent's copies. Idempotent. The kernel closes a socket with its last copy."""
        for sock in self._all():
            sock.close()

    def _all(self) -> chain[socket.socket]:
        return chain.from_iterable(chain.from_iterable(self._workers))


async def _spread(address: Address, workers: int) -> list[list[socket.socket]]:
    """Sockets for each worker that share an address which no other process has.

    Raises:
        SettingsError: the address is not available.
    """
    sockets: list[list[socket.socket]] = []
    try:
        # With SO_REUSEPORT alone, another proxy of this user would get a part of our connections, without any error.
        probes = await bound_sockets(address)
        names = [(probe.family, probe.getsockname()) for probe in probes]
        for probe in probes:
            probe.close()
        for _ in range(workers):
            sockets.append([])
            for family, name in names:
                sock = socket.socket(family, socket.SOCK_STREAM)
                sockets[-1].append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(name)
    except OSError as error:
        for sock in chain.from_iterable(sockets):
            sock.close()
        raise unavailable(address, error) from error
    return sockets
