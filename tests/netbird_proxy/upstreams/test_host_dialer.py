"""Dialing from the host: real sockets on loopback, and a name for every way in which the system says no."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterator
from ipaddress import ip_network
from typing import Any

import pytest
import pytest_asyncio

from netbird_proxy.api.addresses import AddressJudge, AddressRules, AllowedNetworks, NetworkOptions
from netbird_proxy.api.errors import (
    AddressRefused,
    DialFailed,
    DialRefused,
    DialTimeout,
    DialUnreachable,
    UpstreamError,
)
from netbird_proxy.api.model import AccountId, Address
from netbird_proxy.api.tunnels import Dialer
from netbird_proxy.upstreams.host_dialer import HostDialer, dial_error, literal, resolve

TIMEOUT = 10.0


@pytest_asyncio.fixture
async def echo() -> AsyncIterator[int]:
    """The port of a server on 127.0.0.1 that says who connected."""

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(writer.get_extra_info("peername")[1]).encode())
        writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Listener(asyncio.Protocol):
    def __init__(self) -> None:
        self.closed: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.got = b""

    def data_received(self, data: bytes) -> None:
        self.got += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(self.got)


def refusing_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "127.1"])
async def test_a_stream_is_opened(echo: int, name: str) -> None:
    """A literal, a name (whose other addresses refuse), and what only a resolver takes for an address."""
    dialer: Dialer = HostDialer()
    transport, protocol = await dialer.dial(Listener, Address(name, echo), timeout=TIMEOUT)
    assert isinstance(protocol, Listener)
    async with asyncio.timeout(TIMEOUT):
        assert await protocol.closed == str(transport.get_extra_info("sockname")[1]).encode()


async def test_no_delay_and_keep_alive(echo: int) -> None:
    """Small writes leave at once, and a dead upstream is noticed some day."""
    transport, protocol = await HostDialer().dial(Listener, Address("127.0.0.1", echo), timeout=TIMEOUT)
    sock = transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    transport.abort()
    assert isinstance(protocol, Listener)
    await protocol.closed


async def test_refused() -> None:
    """A closed port is refused, by literal and by a name with several addresses."""
    port = refusing_port()
    for name in ("127.0.0.1", "localhost"):
        with pytest.raises(DialRefused, match=str(port)):
            await HostDialer().dial(Listener, Address(name, port), timeout=TIMEOUT)


async def test_a_full_backlog_times_out() -> None:
    """An upstream that does not answer the handshake is given up at the deadline."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = Address("127.0.0.1", listener.getsockname()[1])
        fillers = []
        for _ in range(20):  # the kernel takes some more than the backlog says
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        with pytest.raises(DialTimeout):
            await HostDialer().dial(Listener, address, timeout=0.1)
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("name", ["", "no.such.host.invalid", "a" * 70 + ".example", "a..b", "bad\0name", "*"])
async def test_names_that_cannot_be_resolved(name: str) -> None:
    """Unknown and impossible names are failed dials, not tracebacks."""
    with pytest.raises(UpstreamError) as caught:
        await HostDialer().dial(Listener, Address(name, 80), timeout=TIMEOUT)
    assert isinstance(caught.value, DialFailed | DialRefused | DialUnreachable)


@pytest.mark.parametrize("port", [-1, 0, 65536, 65536 + 22, 1 << 40])
async def test_ports_that_cannot_be(port: int) -> None:
    """A port out of range is a failed dial, one way or several."""
    for name in ("127.0.0.1", "localhost"):
        with pytest.raises(DialFailed):
            await HostDialer().dial(Listener, Address(name, port), timeout=TIMEOUT)


async def test_cancelling_closes_what_was_opened() -> None:
    """A dial that is cancelled while it connects leaves no socket behind."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = Address("127.0.0.1", listener.getsockname()[1])
        before = len(os.listdir("/proc/self/fd"))
        async with asyncio.TaskGroup() as group:
            dials = [group.create_task(HostDialer().dial(Listener, address, timeout=TIMEOUT)) for _ in range(20)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for dial in dials:
                dial.cancel()
        for dial in dials:
            if not dial.cancelled():
                transport, protocol = dial.result()
                transport.abort()
                assert isinstance(protocol, Listener)
                await protocol.closed
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) <= before


async def test_a_protocol_factory_that_raises_closes_the_socket(echo: int) -> None:
    """What was opened for it is closed again."""

    def factory() -> asyncio.Protocol:
        raise OSError("no protocol today")

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DialFailed):
        await HostDialer().dial(factory, Address("127.0.0.1", echo), timeout=TIMEOUT)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the server's end may still be open


class Names(asyncio.SelectorEventLoop):
    """A loop that resolves `many.example` to two addresses of loopback."""

    async def getaddrinfo(self, host: Any, port: Any, **how: Any) -> Any:
        resolve = super().getaddrinfo
        literals = ("127.0.0.2", "127.0.0.3") if host == "many.example" else (host,)
        return [info for literal in literals for info in await resolve(literal, port, **how)]


def run(test: Coroutine[Any, Any, None]) -> None:
    """Runs a test on that loop, within a bound."""

    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT):
            await test

    with asyncio.Runner(loop_factory=Names) as runner:
        runner.run(bounded())


@contextlib.contextmanager
def silent(host: str, port: int = 0) -> Iterator[int]:
    """A port on which the kernel answers no handshake, as its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(20):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((host, port))
        yield port


def test_the_next_address_does_not_wait_for_a_silent_one() -> None:
    """With a silent first address the second is tried beside it and wins, long before the deadline."""

    async def test() -> None:
        with silent("127.0.0.2") as port, socket.socket() as good:
            good.bind(("127.0.0.3", port))
            good.listen(5)
            dialer = HostDialer(stagger=0.01)
            transport, _ = await dialer.dial(Listener, Address("many.example", port), timeout=600)
            assert transport.get_extra_info("peername") == ("127.0.0.3", port)
            transport.abort()

    run(test())


def test_all_addresses_refusing_names_them_all() -> None:
    """The operator sees each address that was tried."""

    async def test() -> None:
        with pytest.raises(DialRefused, match=r"127\.0\.0\.2.*127\.0\.0\.3"):
            await HostDialer().dial(Listener, Address("many.example", refusing_port()), timeout=TIMEOUT)

    run(test())


def judge(options: NetworkOptions) -> AddressJudge:
    return AddressJudge(AddressRules([options], lambda: ()), AccountId("acct"))


ONLY_THIRD = NetworkOptions(allow=(AllowedNetworks(accounts=("*",), networks=(ip_network("127.0.0.3/32"),)),))


def test_promise_6_only_judged_addresses_of_a_name_are_dialed() -> None:
    """A name with an open and a closed address leads to the open one, though the closed one would answer."""

    async def test() -> None:
        with socket.socket() as closed, socket.socket() as good:
            closed.bind(("127.0.0.2", 0))
            port = closed.getsockname()[1]
            closed.listen(5)
            closed.setblocking(False)
            good.bind(("127.0.0.3", port))
            good.listen(5)
            dialer = HostDialer(judge(ONLY_THIRD))
            transport, _ = await dialer.dial(Listener, Address("many.example", port), timeout=TIMEOUT)
            assert transport.get_extra_info("peername") == ("127.0.0.3", port)
            transport.abort()
            with pytest.raises(BlockingIOError):
                closed.accept()

    run(test())


def test_promise_6_a_name_with_closed_addresses_only_is_not_dialed() -> None:
    """The refusal names each address."""

    async def test() -> None:
        with pytest.raises(AddressRefused, match=r"127\.0\.0\.2 is loopback.*127\.0\.0\.3 is loopback"):
            await HostDialer(judge(NetworkOptions())).dial(Listener, Address("many.example", 80), timeout=TIMEOUT)

    run(test())


def test_equal_dialers() -> None:
    """Dialers with the same rules for one account are one to a pool; those of two accounts are not."""
    rules = AddressRules([], lambda: ())
    assert HostDialer(AddressJudge(rules, AccountId("a"))) == HostDialer(AddressJudge(rules, AccountId("a")))
    assert HostDialer(AddressJudge(rules, AccountId("a"))) != HostDialer(AddressJudge(rules, AccountId("b")))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("::FFFF:7f00:1", "::ffff:127.0.0.1"),
        ("127.1", None),
        ("2130706433", None),
        ("0x7f.0.0.1", None),
        ("0177.0.0.1", None),
        ("127.0.0.1.", None),
        ("localhost", None),
        ("", None),
    ],
)
def test_what_a_literal_is(text: str, canonical: str | None) -> None:
    """Only the strict spellings are addresses; all others go through resolution, so that somebody can judge them."""
    assert literal(text) == canonical


@pytest.mark.parametrize("name", ["127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1"])
async def test_odd_spellings_resolve_to_what_would_be_dialed(name: str) -> None:
    """A check after resolution sees the loopback address behind its odd spellings."""
    assert await resolve(name) == ("127.0.0.1",)


async def test_a_literal_resolves_to_itself() -> None:
    """So what was judged is what is dialed."""
    assert await resolve("192.0.2.1") == ("192.0.2.1",)
    assert await resolve("2001:DB8::1") == ("2001:db8::1",)


async def test_a_name_resolves_without_duplicates() -> None:
    """`localhost` is loopback, each address once."""
    found = await resolve("localhost")
    assert set(found) <= {"127.0.0.1", "::1"}
    assert len(found) == len(set(found))


ERRORS: list[tuple[BaseException, type[UpstreamError]]] = [
    (ConnectionRefusedError(errno.ECONNREFUSED, "x"), DialRefused),
    (TimeoutError(), DialTimeout),
    (OSError(errno.ETIMEDOUT, "x"), DialTimeout),
    (OSError(errno.ENETUNREACH, "x"), DialUnreachable),
    (OSError(errno.EHOSTUNREACH, "x"), DialUnreachable),
    (OSError(errno.ENETDOWN, "x"), DialUnreachable),
    (OSError(errno.EHOSTDOWN, "x"), DialUnreachable),
    (OSError(errno.EADDRNOTAVAIL, "x"), DialUnreachable),
    (OSError(errno.EAFNOSUPPORT, "x"), DialUnreachable),
    (PermissionError(errno.EPERM, "x"), DialFailed),
    (PermissionError(errno.EACCES, "x"), DialFailed),
    (ConnectionResetError(errno.ECONNRESET, "x"), DialFailed),
    (ConnectionAbortedError(errno.ECONNABORTED, "x"), DialFailed),
    (BrokenPipeError(errno.EPIPE, "x"), DialFailed),
    (InterruptedError(errno.EINTR, "x"), DialFailed),
    (OSError(errno.EMFILE, "x"), DialFailed),
    (OSError(errno.ENFILE, "x"), DialFailed),
    (OSError(errno.ENOBUFS, "x"), DialFailed),
    (OSError(errno.EINVAL, "x"), DialFailed),
    (OSError("no number"), DialFailed),
    (socket.gaierror(socket.EAI_NONAME, "x"), DialFailed),
    (socket.gaierror(socket.EAI_AGAIN, "x"), DialFailed),
    (ssl.SSLError("x"), DialFailed),
    (UnicodeError("x"), DialFailed),
    (ValueError("x"), DialFailed),
    (OverflowError("x"), DialFailed),
    (AddressRefused("x"), AddressRefused),
]


@pytest.mark.parametrize(("raised", "leaf"), ERRORS, ids=[repr(raised) for raised, _ in ERRORS])
def test_every_error_has_a_leaf(raised: BaseException, leaf: type[UpstreamError]) -> None:
    """What the system raises becomes one of the tree's leaves, and the message says what was attempted."""
    error = dial_error(Address("::1", 80), raised)
    assert type(error) is leaf
    if not isinstance(raised, UpstreamError):
        assert str(error).startswith("dial [::1]:80: ")


def test_every_number_of_the_system_has_a_leaf() -> None:
    """No errno escapes the tree."""
    for number in errno.errorcode:
        assert isinstance(dial_error(Address("h", 1), OSError(number, "x")), UpstreamError)


def test_a_race_that_is_cancelled_leaves_nothing() -> None:
    """Several silent addresses: the deadline ends all attempts, and their sockets are closed."""

    async def test() -> None:
        with silent("127.0.0.2") as port, silent("127.0.0.3", port):
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(DialTimeout):
                await HostDialer(stagger=0.01).dial(Listener, Address("many.example", port), timeout=0.1)
            await asyncio.sleep(0)
            assert len(os.listdir("/proc/self/fd")) <= before

    run(test())


def test_of_two_that_connect_one_is_kept() -> None:
    """Both addresses answer at once: one socket is given, the other closed."""

    async def test() -> None:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.2", 0))
            port = one.getsockname()[1]
            two.bind(("127.0.0.3", port))
            one.listen(100)
            two.listen(100)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(10):
                address = Address("many.example", port)
                transport, protocol = await HostDialer(stagger=0).dial(Listener, address, timeout=TIMEOUT)
                assert transport.get_extra_info("peername")[1] == port
                transport.abort()
                assert isinstance(protocol, Listener)
                await protocol.closed
            await asyncio.sleep(0)
            assert len(os.listdir("/proc/self/fd")) <= before

    run(test())
