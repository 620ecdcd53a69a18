"""The engine: WireGuard and TCP/IP in userspace, as a machine without sockets, threads or clock.

Bytes, their source and the time go in; datagrams, typed events and the next deadline come out. Everything is
synchronous and belongs to one thread. `now` is seconds on any monotonic clock (`loop.time()`); an engine never sees
it go backwards (an older value counts as the newest one seen). Its life begins with the first `now` it hears; until
then `deadline` is minus infinity if there is something to do.

A turn is always: something in (`receive`, `pump`, or a call such as `write`), then `events()`, then, if `pending`,
`pump(fd, now, 0)` or `advance(now)` and `transmits()`; then sleep until `deadline`.

Connections are named by integers that are never used again. Each connection that was reported ends with exactly one
`Closed` (or, before it was `Connected`, one `ConnectFailed`); nothing follows it. Calls that name a connection that
is gone do nothing, since its `Closed` may still be waiting in `events()`.

Addresses are text without a zone or prefix length (`"100.64.0.1"`, `"fd00::1"`); endpoints are `(host, port)` of the
outside network. IPv4-mapped IPv6 addresses are turned into IPv4 everywhere.
"""

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias, final

Endpoint: TypeAlias = tuple[str, int]
OverlayAddress: TypeAlias = tuple[str, int]
Rule: TypeAlias = tuple[str, int, int, int]
"""Source prefix, IP protocol (6 TCP; 1 echo requests of both families), first and last destination port."""
Event: TypeAlias = Accepted | Connected | ConnectFailed | Data | Eof | Writable | Closed | Handshake | EndpointChanged

class EngineError(RuntimeError):
    """The engine is broken by a defect of its own; it does nothing any more and has to be replaced."""

class NoRoute(ConnectionError):
    """No peer has the address among its allowed IPs, or we have no address of that family."""

class NoEndpoint(ConnectionError):
    """The address belongs to a peer, but nobody knows where that peer is: it has to speak first."""

class LimitReached(ConnectionError):
    """The cap on connections, buffer bytes or local ports is reached."""

@final
class Accepted:
    """A peer opened a connection to a port we listen on; its three-way handshake is complete."""

    conn: Final[int]
    local: Final[OverlayAddress]
    remote: Final[OverlayAddress]
    port: Final[int]
    """The port listened on (`local[1]`)."""
    peer: Final[bytes]
    """Public key of the peer that sent it, whose allowed IPs hold `remote[0]`."""
    __match_args__ = ("conn", "local", "remote", "port", "peer")

@final
class Connected:
    """A connection opened by `connect` is established."""

    conn: Final[int]
    local: Final[OverlayAddress]
    __match_args__ = ("conn", "local")

@final
class ConnectFailed:
    """A connection opened by `connect` never came to be.

    `refused` reset by the other end; `unreachable` an ICMP error said so; `timeout` no answer within the connect
    timeout; `peer_removed` the address is no longer that peer's; `local` closed or aborted by us; `address_removed`.
    """

    conn: Final[int]
    reason: Final[Literal["refused", "unreachable", "timeout", "peer_removed", "address_removed", "local"]]
    __match_args__ = ("conn", "reason")

@final
class Data:
    """Bytes in order. Never after `Eof` or `Closed`, never while reading is paused, never empty."""

    conn: Final[int]
    data: Final[bytes]
    __match_args__ = ("conn", "data")

@final
class Eof:
    """The other end finished sending; we may still write."""

    conn: Final[int]
    __match_args__ = ("conn",)

@final
class Writable:
    """After a `write` that took less than it was given: at least half the send buffer is free again."""

    conn: Final[int]
    __match_args__ = ("conn",)

@final
class Closed:
    """The end of a connection.

    `finished` both directions ended and everything was acknowledged; `local` after `close` or `abort`; `reset` by the
    other end; `timeout` the other end stopped answering; `peer_removed` its peer is gone or lost the address;
    `denied` the inbound rules no longer allow it; `address_removed` our own address is gone.
    """

    conn: Final[int]
    reason: Final[Literal["finished", "local", "reset", "timeout", "peer_removed", "denied", "address_removed"]]
    __match_args__ = ("conn", "reason")

@final
class Handshake:
    """A session with a peer was made or renewed, and both ends have proved it."""

    peer: Final[bytes]
    __match_args__ = ("peer",)

@final
class EndpointChanged:
    """A peer spoke, authenticated, from another outside address than the one known."""

    peer: Final[bytes]
    endpoint: Final[Endpoint]
    __match_args__ = ("peer", "endpoint")

@final
class PeerState:
    public_key: Final[bytes]
    endpoint: Final[Endpoint | None]
    allowed_ips: Final[list[str]]
    last_handshake: Final[float | None]
    """Seconds since the session in use was made; None before the first and once the last has expired."""
    rx: Final[int]
    tx: Final[int]
    """Bytes of datagrams from and to this peer, WireGuard's own included."""
    keepalive: Final[int | None]

@final
class PumpResult:
    received: Final[int]
    sent: Final[int]
    more: Final[bool]
    """The budget ended before the socket did: pump again soon."""
    blocked: Final[bool]
    """The socket would not take all datagrams: pump again when it is writable."""
    deadline: Final[float]
    """As `Engine.deadline`."""

@final
class Engine:
    """One overlay node: a key pair, its peers, its addresses and its TCP connections.

    Args:
        private_key: 32 bytes.
        mtu: of the overlay, IP header included; 576..8192, and at least 1280 for IPv6.
        receive_buffer, send_buffer: bytes a connection; the receive buffer is the window offered to the other end.
        max_connections: of all states, half-open included.
        reserved_for_dials: of these, how many only `connect` may take; peers may open the rest.
        fair: a peer may have no more inbound connections than are still free for all peers, so that no number of peers
            takes all; others of its are dropped and counted as `share_reached`.
        max_buffer_bytes: of all connections' buffers together, counted at full size.
        connect_timeout: seconds `connect` waits for the other end.
        handshakes_per_second: above this, senders of handshakes must first prove their address (cookie replies).
        seed: tests only: makes ports and sequence numbers repeatable; None takes them from the operating system.
    """

    def __new__(
        cls,
        private_key: bytes,
        *,
        mtu: int = 1280,
        receive_buffer: int = 131072,
        send_buffer: int = 131072,
        max_connections: int = 4096,
        reserved_for_dials: int = 0,
        fair: bool = False,
        max_buffer_bytes: int = 1 << 30,
        connect_timeout: float = 60.0,
        handshakes_per_second: int = 100,
        seed: bytes | None = None,
    ) -> Engine: ...
    @property
    def public_key(self) -> bytes: ...
    @property
    def addresses(self) -> list[str]: ...
    @property
    def pending(self) -> bool:
        """Whether a flush (`pump(fd, now, 0)`, or `advance` and `transmits`) would do something now."""
    @property
    def deadline(self) -> float:
        """When `advance` or `pump` is due at the latest, on the clock of `now`; infinity if nothing is scheduled."""

    # Who we are, and who the others are

    def set_addresses(self, addresses: Sequence[str]) -> None:
        """Replace our overlay addresses (at most 8). Connections of a removed address end: `address_removed`."""
    def set_peer(
        self,
        public_key: bytes,
        allowed_ips: Sequence[str],
        *,
        endpoint: Endpoint | None = None,
        keepalive: int | None = None,
        preshared_key: bytes | None = None,
    ) -> None:
        """Add a peer or update it in place.

        `allowed_ips` (prefixes, or addresses that mean /32 and /128) replaces the peer's list and takes equal
        prefixes away from other peers. A session survives all but a change of `preshared_key`. `endpoint=None`
        keeps the one known; another one overrides what was learned only if it differs from the one last given here.
        `keepalive` is seconds between packets to it, None or 0 for none.
        Connections whose remote address is no longer this peer's end: `peer_removed`.

        Raises:
            ValueError: a key of a wrong size, our own key, an address that is none; nothing was changed.
        """
    def remove_peer(self, public_key: bytes) -> bool:
        """Forget a peer, its session and its allowed IPs; its connections end (`peer_removed`). False if unknown."""
    def peers(self) -> list[PeerState]: ...
    def peer(self, public_key: bytes) -> PeerState | None: ...
    def whois(self, address: str) -> bytes | None:
        """Public key of the peer that owns exactly this address (a /32 or /128); routes never answer."""
    def handshake(self, public_key: bytes) -> bool:
        """Start a handshake now; False if the peer or its endpoint is unknown.

        For each known endpoint at start: a peer goes on with the session from before our restart. When it speaks in it,
        it is sent a handshake to where it speaks from anyway (once a second at most), but its packet is lost.
        """

    # What may come in

    def set_inbound(self, rules: Sequence[Rule], *, denied: Sequence[Rule] = ()) -> None:
        """Replace the rules for flows that peers open; none at first, so nothing comes in.

        `denied` goes before `rules`. A prefix speaks of its own family only (`0.0.0.0/0`, `::/0`). Established
        inbound connections that are no longer allowed end: `denied`.

        Raises:
            ValueError: a rule that cannot be understood; the rules in force stay.
        """
    def listen(self, port: int, backlog: int = 256) -> None:
        """Accept connections to a port on all our addresses; `backlog` bounds those not yet established.

        Again on the same port changes the backlog. Who may come in is for `set_inbound` to say.
        """
    def unlisten(self, port: int) -> bool:
        """Accept no more there; connections that exist go on. False if it was not listened on."""

    # Connections

    def connect(self, address: str, port: int, now: float) -> int:
        """Open a connection; `Connected` or `ConnectFailed` follows.

        Raises:
            NoRoute, NoEndpoint, LimitReached: as named; nothing was sent.
        """
    def write(self, conn: int, data: bytes | bytearray | memoryview) -> int:
        """Take as much of `data` into the send buffer as fits; 0 if the connection is gone or its sending side ended.

        After a short count, `Writable` follows. Possible from `Accepted`/`Connected` on.
        """
    def write_eof(self, conn: int) -> None:
        """Finish sending after what is in the send buffer; receiving goes on."""
    def close(self, conn: int) -> None:
        """Give the connection up: what is in the send buffer is still delivered, what comes in is discarded.

        `Closed` (`local`) is reported at once; the engine ends the rest in the background, within 60 s.
        """
    def abort(self, conn: int) -> None:
        """Reset the connection; `Closed` (`local`) follows."""
    def pause_reading(self, conn: int) -> None:
        """No `Data` or `Eof` until `resume_reading`; the receive buffer fills and the sender has to wait."""
    def resume_reading(self, conn: int) -> None: ...
    def unsent(self, conn: int) -> int:
        """Bytes in the send buffer that the other end has not acknowledged."""

    # Time and bytes

    def receive(self, datagram: bytes | bytearray | memoryview, endpoint: Endpoint, now: float) -> None:
        """Take one datagram from outside. Never raises on what it contains; what is wrong is counted and dropped."""
    def advance(self, now: float) -> float:
        """Do what is due: timers, retransmissions, flushes. Returns `deadline`."""
    def transmits(self) -> list[tuple[bytes, Endpoint]]:
        """Take the datagrams that are ready to go. The pure path; `pump` sends them itself."""
    def aggregate(self, fd: int) -> bool:
        """Have the kernel hand a socket's datagrams to `pump` in runs of one sender, which costs less.

        For the one socket that `pump` is given from then on. False where the kernel cannot; nothing has changed then.
        """
    def pump(self, fd: int, now: float, budget: int = 256) -> PumpResult:
        """Receive up to `budget` datagrams from a non-blocking UDP socket, do what is due, send what is ready.

        After `aggregate` a run of datagrams is taken whole, so there can be some more.

        The socket stays the caller's; an AF_INET6 one may be dual-stack. `budget` 0 only does what is due and sends.

        Raises:
            OSError: the socket is unusable (not for what a single datagram can cause: those are counted).
        """
    def events(self) -> list[Event]:
        """Take what happened since the last call, in order for each connection. Reads the connections' data."""
    def counters(self) -> dict[str, int]:
        """Totals since the start. Dropped datagrams and packets:

        malformed, bad_mac, unknown_key, unknown_session, decrypt_failed, replayed, replayed_handshake, rate_limited,
        bad_source, bad_destination, bad_packet, unsupported, denied_inbound, not_listening, unmatched,
        backlog_full,
        limit_reached, internal_error, no_endpoint, queue_full, send_failed;
        also: handshakes, datagrams_in, datagrams_out, bytes_in, bytes_out, accepted, connected, connections
        (now), buffer_bytes (now), half_open (now).
        """
