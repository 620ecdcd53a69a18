"""The engine: WireGuard and TCP/IP in userspace, without sockets, threads or clock.

The caller passes in datagrams with their source and the time; the engine returns datagrams, typed events and the next
deadline. All calls are synchronous and must come from one thread. `now` is in seconds on any monotonic clock
(`loop.time()`); the engine treats an older value as the newest one so far. Its time begins with the first `now`; until
then `deadline` is minus infinity if work is due.

A turn consists of an input (`receive`, `pump`, or a call such as `write`), then `events()`, then, if `pending`,
`pump(fd, now, 0)` or `advance(now)` and `transmits()`, then a sleep until `deadline`.

Integers identify connections and are never reused. Each reported connection ends with exactly one `Closed` (or, before
it was `Connected`, one `ConnectFailed`), which is its last event. Calls on an ended connection do nothing, because its
`Closed` may still wait in `events()`.

Addresses are strings without a zone or prefix length (`"100.64.0.1"`, `"fd00::1"`); endpoints are `(host, port)` in the
outside network. IPv4-mapped IPv6 addresses are converted to IPv4 everywhere.
"""

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias, final

Endpoint: TypeAlias = tuple[str, int]
OverlayAddress: TypeAlias = tuple[str, int]
Rule: TypeAlias = tuple[str, int, int, int]
"""Source prefix, IP protocol (6 TCP; 1 echo requests of both families), first and last destination port."""
Event: TypeAlias = Accepted | Connected | ConnectFailed | Data | Eof | Writable | Closed | Handshake | EndpointChanged

class EngineError(RuntimeError):
    """The engine failed because of a defect of its own; it cannot be used any more and must be replaced."""

class NoRoute(ConnectionError):
    """No peer has the address among its allowed IPs, or this node has no address of that family."""

class NoEndpoint(ConnectionError):
    """The address belongs to a peer whose endpoint is unknown: the peer must send a packet first."""

class LimitReached(ConnectionError):
    """The limit on connections, buffer bytes or local ports is reached."""

@final
class Accepted:
    """A peer opened a connection to a listening port; its three-way handshake is complete."""

    conn: Final[int]
    local: Final[OverlayAddress]
    remote: Final[OverlayAddress]
    port: Final[int]
    """The listening port (`local[1]`)."""
    peer: Final[bytes]
    """Public key of the peer, whose allowed IPs include `remote[0]`."""
    __match_args__ = ("conn", "local", "remote", "port", "peer")

@final
class Connected:
    """A connection opened by `connect` is established."""

    conn: Final[int]
    local: Final[OverlayAddress]
    __match_args__ = ("conn", "local")

@final
class ConnectFailed:
    """A connection opened by `connect` was not established.

    Reasons: `refused`, reset by the other end; `unreachable`, reported by an ICMP error; `timeout`, no answer within
    the connect timeout; `peer_removed`, the address no longer belongs to that peer; `local`, closed or aborted by the
    caller; `address_removed`, this node lost its own address.
    """

    conn: Final[int]
    reason: Final[Literal["refused", "unreachable", "timeout", "peer_removed", "address_removed", "local"]]
    __match_args__ = ("conn", "reason")

@final
class Data:
    """Received bytes, in order. Never comes after `Eof` or `Closed` or while reading is paused; never empty."""

    conn: Final[int]
    data: Final[bytes]
    __match_args__ = ("conn", "data")

@final
class Eof:
    """The other end finished sending; the caller may still write."""

    conn: Final[int]
    __match_args__ = ("conn",)

@final
class Writable:
    """At least half of the send buffer is free again, after a `write` that took only part of its data."""

    conn: Final[int]
    __match_args__ = ("conn",)

@final
class Closed:
    """The end of a connection.

    Reasons: `finished`, both directions ended and all data was acknowledged; `local`, after `close` or `abort`;
    `reset`, by the other end; `timeout`, the other end stopped answering; `peer_removed`, the peer was removed or lost
    the address; `denied`, the inbound rules no longer allow the connection; `address_removed`, this node lost its own
    address.
    """

    conn: Final[int]
    reason: Final[Literal["finished", "local", "reset", "timeout", "peer_removed", "denied", "address_removed"]]
    __match_args__ = ("conn", "reason")

@final
class Handshake:
    """A handshake with a peer completed: a session was made or renewed, and both ends proved their keys."""

    peer: Final[bytes]
    __match_args__ = ("peer",)

@final
class EndpointChanged:
    """An authenticated packet of a peer came from a new outside address."""

    peer: Final[bytes]
    endpoint: Final[Endpoint]
    __match_args__ = ("peer", "endpoint")

@final
class PeerState:
    public_key: Final[bytes]
    endpoint: Final[Endpoint | None]
    allowed_ips: Final[list[str]]
    last_handshake: Final[float | None]
    """Seconds since the current session was made; None before the first session and after the last has expired."""
    rx: Final[int]
    tx: Final[int]
    """Bytes of datagrams from and to this peer, WireGuard's own messages included."""
    keepalive: Final[int | None]

@final
class PumpResult:
    received: Final[int]
    sent: Final[int]
    more: Final[bool]
    """The budget was used up before the socket was empty: pump again soon."""
    blocked: Final[bool]
    """The socket did not take all datagrams: pump again when it is writable."""
    deadline: Final[float]
    """As `Engine.deadline`."""

@final
class Engine:
    """One overlay node: a key pair, its peers, its addresses and its TCP connections.

    Args:
        private_key: 32 bytes.
        mtu: the overlay's MTU, IP header included: 576..8192, and at least 1280 for IPv6.
        receive_buffer, send_buffer: bytes for each connection; the receive buffer is the window that the other end
            sees.
        max_connections: maximum number of connections in all states, half-open ones included.
        reserved_for_dials: number of these that only `connect` may use; peers may open the rest.
        fair: limits the inbound connections of a peer to the number that is still free for all peers, so that no number
            of peers can occupy all; further ones are dropped and counted as `share_reached`.
        max_buffer_bytes: maximum size of all connections' buffers together, counted at full size.
        connect_timeout: seconds for which `connect` waits for the other end.
        handshakes_per_second: rate above which senders of handshakes must first prove their address (cookie replies).
        seed: for tests; makes ports and sequence numbers repeatable. None takes them from the operating system.
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
        """True if a flush (`pump(fd, now, 0)`, or `advance` and `transmits`) would do work now."""
    @property
    def deadline(self) -> float:
        """Latest time for the next `advance` or `pump`, on the clock of `now`; infinity if nothing is scheduled."""

    # This node and its peers

    def set_addresses(self, addresses: Sequence[str]) -> None:
        """Replace the node's overlay addresses (at most 8). Connections of removed addresses end: `address_removed`."""
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

        `allowed_ips` (prefixes, or addresses as /32 and /128) replaces the peer's list and removes equal prefixes from
        other peers. A session survives all changes except of `preshared_key`. `endpoint=None` keeps the current
        endpoint; a value overrides a learned endpoint only if it differs from the one last passed here. `keepalive` is
        the interval in seconds between packets to the peer, None or 0 for none. Connections whose remote address no
        longer belongs to this peer end: `peer_removed`.

        Raises:
            ValueError: a key of the wrong size, this node's own key, or an invalid address; nothing was changed.
        """
    def remove_peer(self, public_key: bytes) -> bool:
        """Remove a peer, its session and its allowed IPs; its connections end (`peer_removed`). False if unknown."""
    def peers(self) -> list[PeerState]: ...
    def peer(self, public_key: bytes) -> PeerState | None: ...
    def whois(self, address: str) -> bytes | None:
        """Return the public key of the peer with exactly this address (a /32 or /128). Wider prefixes do not count."""
    def handshake(self, public_key: bytes) -> bool:
        """Start a handshake now. False if the peer or its endpoint is unknown.

        Meant for every stored endpoint after a restart, because peers continue their old sessions. Without this call,
        the engine answers a packet of an old session with a handshake (at most once a second), but the packet is lost.
        """

    # Inbound connections

    def set_inbound(self, rules: Sequence[Rule], *, denied: Sequence[Rule] = ()) -> None:
        """Replace the rules for flows that peers open. Without rules, the initial state, nothing is admitted.

        `denied` takes precedence over `rules`. A prefix matches its own family only (`0.0.0.0/0`, `::/0`). Established
        inbound connections that are no longer allowed end: `denied`.

        Raises:
            ValueError: a rule is invalid; the rules in force stay.
        """
    def listen(self, port: int, backlog: int = 256) -> None:
        """Accept connections to a port on all of this node's addresses, as far as `set_inbound` allows them.

        `backlog` limits the connections that are not yet established. A second call for a port changes its backlog.
        """
    def unlisten(self, port: int) -> bool:
        """Stop accepting connections to a port; existing ones continue. False if the port was not listening."""

    # Connections

    def connect(self, address: str, port: int, now: float) -> int:
        """Open a connection; `Connected` or `ConnectFailed` follows.

        Raises:
            NoRoute, NoEndpoint, LimitReached: nothing was sent.
        """
    def write(self, conn: int, data: bytes | bytearray | memoryview) -> int:
        """Copy as much of `data` into the send buffer as fits, and return the number of bytes.

        0 if the connection has ended or its sending side is finished. After a partial write, `Writable` follows.
        Possible from `Accepted` or `Connected` on.
        """
    def write_eof(self, conn: int) -> None:
        """Finish sending once the send buffer is sent; receiving continues."""
    def close(self, conn: int) -> None:
        """Close the connection: the send buffer is still delivered, incoming data is discarded.

        `Closed` (`local`) is reported at once; the engine finishes in the background, within 60 s.
        """
    def abort(self, conn: int) -> None:
        """Reset the connection; `Closed` (`local`) follows."""
    def pause_reading(self, conn: int) -> None:
        """Withhold `Data` and `Eof` until `resume_reading`; the receive buffer fills, and then the sender must wait."""
    def resume_reading(self, conn: int) -> None: ...
    def unsent(self, conn: int) -> int:
        """Return the number of bytes in the send buffer that the other end has not acknowledged."""

    # Datagrams and time

    def receive(self, datagram: bytes | bytearray | memoryview, endpoint: Endpoint, now: float) -> None:
        """Process one datagram from outside. Never raises because of its content: an invalid one is counted."""
    def advance(self, now: float) -> float:
        """Perform due work: timers, retransmissions, flushes. Returns `deadline`."""
    def transmits(self) -> list[tuple[bytes, Endpoint]]:
        """Take the datagrams that are ready to send. For callers without a socket; `pump` sends them itself."""
    def aggregate(self, fd: int) -> bool:
        """Let the kernel pass a socket's datagrams to `pump` in runs of one sender, which costs less.

        From then on, `pump` must be called with this socket only. False, and nothing changed, if the kernel does not
        support it.
        """
    def pump(self, fd: int, now: float, budget: int = 256) -> PumpResult:
        """Receive up to `budget` datagrams from a non-blocking UDP socket, perform due work, and send ready datagrams.

        After `aggregate`, a run of datagrams is received as a whole, so the budget may be exceeded. With a `budget` of
        0, nothing is received. The caller keeps ownership of the socket; an AF_INET6 socket may be dual-stack.

        Raises:
            OSError: the socket is unusable. Errors of a single datagram are counted instead.
        """
    def events(self) -> list[Event]:
        """Take the events since the last call, in order for each connection. Reads the connections' data."""
    def counters(self) -> dict[str, int]:
        """Return totals since the start. Dropped datagrams and packets:

        malformed, bad_mac, unknown_key, unknown_session, decrypt_failed, replayed, replayed_handshake, rate_limited,
        bad_source, bad_destination, bad_packet, unsupported, denied_inbound, not_listening, unmatched,
        backlog_full,
        limit_reached, internal_error, no_endpoint, queue_full, send_failed;
        also: handshakes, datagrams_in, datagrams_out, bytes_in, bytes_out, accepted, connected, and the current values
        connections, buffer_bytes, half_open.
        """
