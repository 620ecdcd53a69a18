"""The sockets of workers: their distribution, and that no other proxy shares them."""

from __future__ import annotations

import os
import socket
from itertools import chain

import pytest

from netbird_proxy.api.errors import SettingsError
from netbird_proxy.api.model import Address
from netbird_proxy.process.settings import Listen
from netbird_proxy.process.workers.sockets import ParentSockets


def listen(port: int = 0, host: str = "127.0.0.1") -> Listen:
    return Listen(address=Address(host, port))


async def test_each_worker_has_sockets_of_its_own_on_the_same_address() -> None:
    """Also for port 0; each knows those of the others; none listens yet."""
    sockets = await ParentSockets.bind([listen(), listen(host="localhost")], 3)
    try:
        owned = [list(chain.from_iterable(sockets.own(number))) for number in (1, 2, 3)]
        assert len({fd for own in owned for fd in own}) == sum(map(len, owned)) == len(sockets.descriptors())
        for number in (1, 2, 3):
            assert sockets.others(number) == {other: sockets.own(other) for other in (1, 2, 3) if other != number}
        names = set()
        for own in owned:
            with socket.socket(fileno=os.dup(own[0])) as copy:
                names.add(copy.getsockname())
        assert names == {tuple(sockets.addresses[0])}
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(names.pop(), timeout=5)
    finally:
        sockets.close()


async def test_an_address_that_is_shared_already_is_refused() -> None:
    """The kernel alone would let a second proxy of the same user share it."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(SettingsError, match="Address already in use"):
            await ParentSockets.bind([listen(), listen(other.getsockname()[1])], 2)


async def test_an_address_of_another_machine_is_refused() -> None:
    """Nothing stays open."""
    with pytest.raises(SettingsError, match=r"listen\.address 192\.0\.2\.1:1"):
        await ParentSockets.bind([listen(), listen(1, "192.0.2.1")], 2)
