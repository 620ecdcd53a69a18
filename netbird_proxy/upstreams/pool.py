"""Connections to an upstream, kept for further exchanges."""

from __future__ import annotations

import asyncio
import ssl

from netbird_host.containment import GRACE, HungSteps, describe_error
from netbird_proxy.api.errors import DialFailed, DialTimeout, TlsFailed, UpstreamError, UpstreamOverloaded
from netbird_proxy.api.model import Upstream
from netbird_proxy.api.tunnels import Dialer
from netbird_proxy.upstreams.connection import Http1Connection
from netbird_proxy.upstreams.protocols import HeadLimits, UpstreamConnection
from netbird_proxy.upstreams.tls import Encrypting, client_context

DIAL_TIMEOUT = 30.0
SHARE = 0.5
"""Largest fraction of an upstream's slots that a single client may use."""


class UpstreamPool:
    """Keeps idle connections, newest first, and counts those in flight. Implements `Pool`.

    Args:
        dialer: opens the streams; any exception but an UpstreamError becomes DialFailed.
        dial_timeout: seconds for dial and TLS together, unless the upstream sets its own.
        head_timeout: seconds; see `Http1Connection`.
        idle_timeout: seconds after which an unused connection is closed.
        max_idle: maximum number of idle connections; further ones are closed when they are released.
        max_in_flight: maximum number of concurrent exchanges, including dials; further ones raise UpstreamOverloaded.
        share: largest fraction of these that a single source may use; see `acquire`. Above 0; 1 for no limit.
        hung_steps: counts dials that ignored their cancellation for `grace` seconds and still hang.
        tls: a TLS context, for tests and plugins with their own roots; by default made from the upstream's settings.
        server_name: name that TLS sends and verifies, if it is not the host that is dialed.
    """

    def __init__(
        self,
        upstream: Upstream,
        dialer: Dialer,
        *,
        dial_timeout: float = DIAL_TIMEOUT,
        head_timeout: float = 300.0,
        idle_timeout: float = 90.0,
        max_idle: int = 100,
        max_in_flight: int = 512,
        share: float = SHARE,
        limits: HeadLimits | None = None,
        hung_steps: HungSteps | None = None,
        grace: float = GRACE,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
    ) -> None:
        self.upstream = upstream
        self.dialer = dialer
        self._name = str(upstream)
        self._dial_timeout = upstream.dial_timeout or dial_timeout
        self._head_timeout = head_timeout
        self._idle_timeout = idle_timeout
        self._max_idle = max_idle
        self._max_in_flight = max_in_flight
        self._weight = (1 - share) / share
        self._limits = limits or HeadLimits()
        self._hung_steps = hung_steps or HungSteps()
        self._grace = grace
        self._tls = tls
        self._server_name = server_name or upstream.server_name or upstream.address.host
        self._idle: list[Http1Connection] = []  # oldest first
        self._busy: dict[Http1Connection, str] = {}  # connection → its source
        self._held: dict[str, int] = {}  # source → its slots, including dials; no zero entries
        self._dialing = 0
        self._retired = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None

    def __repr__(self) -> str:
        state = " closed" if self._closed else " retired" if self._retired else ""
        return (
            f"<UpstreamPool {self._name}{state}: {len(self._idle)} idle, {len(self._busy)} busy, "
            f"{self._dialing} dialing>"
        )

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def in_flight(self) -> int:
        """Number of exchanges that have a connection or wait for one."""
        return len(self._busy) + self._dialing

    async def acquire(self, *, fresh: bool = False, source: str = "") -> Http1Connection:
        """See `Pool.acquire`.

        A source may use as many slots as are free (times `share / (1 - share)`). By default a single source gets half
        of all slots, two sources get a third each, and a new source always gets up to half of the free slots.
        """
        if self._closed:
            raise DialFailed(f"dial {self._name}: its pool is closed")
        free = self._max_in_flight - len(self._busy) - self._dialing
        if free <= 0:
            raise UpstreamOverloaded(f"{self._name}: {self._max_in_flight} exchanges are in flight")
        if source:
            held = self._held.get(source, 0)
            if held * self._weight >= free:
                raise UpstreamOverloaded(f"{self._name}: one client has {held} exchanges in flight, {free} are left")
            self._held[source] = held + 1
        if not fresh:
            while self._idle:
                connection = self._idle.pop()
                if connection.reusable:
                    connection.reused = True
                    self._busy[connection] = source
                    return connection
                connection.close()
        self._dialing += 1
        try:
            connection = await self._dial()
        except BaseException:
            self._give_back(source)
            raise
        finally:
            self._dialing -= 1
            self._signal_if_empty()
        self._busy[connection] = source
        return connection

    def release(self, connection: UpstreamConnection) -> None:
        if not isinstance(connection, Http1Connection) or connection not in self._busy:
            return  # aborted before
        self._give_back(self._busy.pop(connection))
        if connection.finish():
            if self._retired or len(self._idle) >= self._max_idle:
                connection.close()
            else:
                # `get_running_loop` would be a system call on Python 3.11.
                connection.idle_since = connection.loop.time()
                self._idle.append(connection)
                if self._timer is None:
                    self._timer = connection.loop.call_later(self._idle_timeout, self._expire)
        if not self._busy:
            self._signal_if_empty()

    def retire(self) -> None:
        """Keep no idle connections from now on. Open exchanges finish, and late ones still dial. Idempotent."""
        self._retired = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def close(self, *, grace: float = 0.0) -> None:
        """Retire, let open exchanges finish for `grace` seconds, then reset the rest and refuse new ones.

        Cancellation resets the rest at once.
        """
        self.retire()
        try:
            if grace > 0 and self.in_flight:
                self._emptied = asyncio.Event()
                try:
                    async with asyncio.timeout(grace):
                        await self._emptied.wait()
                except TimeoutError:
                    pass
        finally:
            self._closed = True
            for connection in list(self._busy):
                connection.abort()

    # Called by connections -------------------------------------------------------------------------------------------

    def gone(self, connection: Http1Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def given_up(self, connection: Http1Connection) -> None:
        self._give_back(self._busy.pop(connection, ""))
        self._signal_if_empty()

    # -----------------------------------------------------------------------------------------------------------------

    def _give_back(self, source: str) -> None:
        if source:
            held = self._held[source] - 1
            if held:
                self._held[source] = held
            else:
                del self._held[source]

    def _signal_if_empty(self) -> None:
        if self._emptied is not None and not self._busy and not self._dialing:
            self._emptied.set()

    def _expire(self) -> None:
        """Close expired idle connections, and set the timer, of which the pool has only one, for the next oldest."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._idle:
            age = now - self._idle[0].idle_since
            if age < self._idle_timeout:
                self._timer = loop.call_later(self._idle_timeout - age, self._expire)
                return
            self._idle.pop(0).close()

    async def _dial(self) -> Http1Connection:
        connection = Http1Connection(name=self._name, head_timeout=self._head_timeout, limits=self._limits, owner=self)
        context: ssl.SSLContext | None = None
        encrypting: Encrypting | None = None
        timeout = self._dial_timeout
        transport: asyncio.Transport | None = None
        gone = False

        def make_protocol() -> asyncio.BaseProtocol:
            nonlocal encrypting
            if context is None:
                return connection
            encrypting = Encrypting(connection, context, self._server_name, timeout=timeout + 1)
            return encrypting

        async def open_stream() -> None:
            """Run the dialer, which is a plugin's code and may return after the pool stopped waiting for it."""
            nonlocal transport
            opened, _ = await self.dialer.dial(make_protocol, self.upstream.address, timeout=timeout)
            if not callable(getattr(opened, "abort", None)):
                raise TypeError(f"the dialer returned {type(opened).__name__}: return a transport and its protocol")
            transport = opened
            if gone:
                opened.abort()

        try:
            async with asyncio.timeout(timeout):
                if self.upstream.scheme in ("https", "tls"):
                    context = self._tls or client_context(
                        skip_verify=self.upstream.skip_tls_verify, ca=self.upstream.ca
                    )
                await self._hung_steps.bounded(open_stream(), timeout=timeout, grace=self._grace)
                if encrypting is not None:
                    try:
                        await encrypting.handshake()
                    except (OSError, ValueError) as error:  # SSLError is an OSError
                        raise TlsFailed(f"TLS with {self._name}: {error}") from error
            if connection.failure is not None:
                raise DialFailed(f"dial {self._name}: closed as soon as it was opened") from connection.failure
            if self._closed:
                raise DialFailed(f"dial {self._name}: its pool was closed")
        except BaseException as error:
            gone = True
            connection.abort()
            if transport is not None:
                transport.abort()
            if isinstance(error, UpstreamError) or not isinstance(error, Exception):
                raise
            if isinstance(error, TimeoutError):
                raise DialTimeout(f"dial {self._name}: nothing within {timeout:g} s") from error
            raise DialFailed(f"dial {self._name}: {describe_error(error)}") from error
        if not connection.usable:
            raise DialFailed(f"dial {self._name}: the dialer returned no open stream")
        return connection
