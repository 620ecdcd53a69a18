"""The engine: WireGuard and TCP/IP in userspace, without sockets, threads or clock.

The caller passes in datagrams with their source and the time; the engine returns datagrams, typed events and the next
deadline. All calls are synchronous and must come from one thread. `now` is in seconds on any monotonic clock
(`loop.time()`); the engine treats an older value as the newest one so far. Its time begins with the first `now`; until
then `deadline` is minus infinity if work is due.

A turn consists of an input (`receive`, `pump`, or a call such as `write`), then `events()`, then, if `pending`,
`pump(fd, now, 0)` or `advance(now)` and `transmits()`, then a sleep until `deadline`. `turn` does that for
a socket.

Integers identify connections and are never reused. Each reported connection ends with exactly one `Closed` (or, before
it was `Connected`, one `ConnectFailed`), which is its last event. Calls on an ended connection do nothing, because its
`Closed` may still wait in `events()`.

Addresses are strings without a zone or prefix length (`"100.64.0.1"`, `"fd00::1"`); an `Endpoint` is in the outside
network. IPv4-mapped IPv6 addresses are converted to IPv4 everywhere.

A path to a peer is an `Endpoint`, or a carrier: a path that is not UDP, such as a relay. The caller numbers carriers
(1..2**64-1, one for each peer and relay), takes their datagrams from `carried`, and passes in what they deliver.
"""

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias, final

Path: TypeAlias = Endpoint | int
OverlayAddress: TypeAlias = tuple[str, int]
Rule: TypeAlias = tuple[str, int, int, int]
"""Source prefix, IP protocol (6 TCP; 17 UDP; 1 echo requests of both families), first and last destination port."""
Event: TypeAlias = (
    Accepted
    | Connected
    | ConnectFailed
    | Data
    | Eof
    | Writable
    | Closed
    | UdpReceived
    | UdpFailed
    | Handshake
    | EndpointChanged
)

class EngineError(RuntimeError):
    """The engine failed because of a defect of its own; it cannot be used any more and must be replaced."""

class NoRoute(ConnectionError):
    """No peer has the address among its allowed IPs, or this node has no address of that family."""

class NoEndpoint(ConnectionError):
    """The address belongs to a peer whose endpoint is unknown: the peer must send a packet first."""

class LimitReached(ConnectionError):
    """The limit on connections, buffer bytes or local ports is reached."""

@final
class Endpoint:
    """A UDP address. Equal endpoints have the same host, port and scope, and are equal as keys of a dictionary.

    Args:
        host: an IP address in any spelling, without a zone; the attribute has the canonical spelling.
        port: 0..65535.
        scope: the number of the interface of an IPv6 link-local address, else 0.

    Raises:
        ValueError: not an IP address, a port or a scope.
    """

    host: Final[str]
    port: Final[int]
    scope: Final[int]
    __match_args__ = ("host", "port", "scope")

    def __new__(cls, host: str, port: int, scope: int = 0) -> Endpoint: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...

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
    `reset`, by the other end; `timeout`, the other end stopped answering, or took no byte of sent data for 15 minutes;
    `peer_removed`, the peer was removed or lost
    the address; `denied`, the inbound rules no longer allow the connection; `address_removed`, this node lost its own
    address.
    """

    conn: Final[int]
    reason: Final[Literal["finished", "local", "reset", "timeout", "peer_removed", "denied", "address_removed"]]
    __match_args__ = ("conn", "reason")

@final
class UdpReceived:
    """A datagram arrived for a listening port, as far as `set_inbound` allows it, or for a connected socket.

    Datagrams wait for `events` in a queue of 1,024 datagrams and 2 MiB; a peer's may take as much of it as is still
    free for all. Others are dropped, counted as `udp_dropped`, as are fragments, counted as `unsupported`.
    """

    socket: Final[int]
    """The listening port, or the number of a connected socket."""
    data: Final[bytes]
    remote: Final[OverlayAddress]
    peer: Final[bytes]
    """Public key of the peer, whose allowed IPs include `remote[0]`."""
    __match_args__ = ("socket", "data", "remote", "peer")

@final
class UdpFailed:
    """A connected UDP socket failed.

    Reasons: `unreachable`, the peer reported that it has no such socket, and this one stays open; `peer_removed`, the
    address no longer belongs to that peer, and `address_removed`, this node lost its own address: the socket is closed.
    """

    socket: Final[int]
    reason: Final[Literal["unreachable", "peer_removed", "address_removed"]]
    __match_args__ = ("socket", "reason")

@final
class Handshake:
    """A handshake with a peer completed: a session was made or renewed, and both ends proved their keys."""

    peer: Final[bytes]
    __match_args__ = ("peer",)

@final
class EndpointChanged:
    """An authenticated packet of a peer came from a new outside address, and the peer is not pinned.

    There is no event for a peer that comes by a carrier.
    """

    peer: Final[bytes]
    endpoint: Final[Endpoint]
    __match_args__ = ("peer", "endpoint")

@final
class PeerState:
    public_key: Final[bytes]
    endpoint: Final[Path | None]
    """The path of datagrams to this peer; None until it is given, learned or pinned."""
    pinned: Final[bool]
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
    """The budget was used up, and datagrams may wait: pump again soon, even if the socket has nothing to read."""
    blocked: Final[bool]
    """The socket did not take all datagrams: pump again when it is writable."""
    deadline: Final[float]
    """As `Engine.deadline`."""

@final
class Turn:
    """The result of `Engine.turn`."""

    events: Final[list[Event]]
    """As `Engine.events`."""
    carried: Final[list[tuple[int, list[bytes]]]]
    """As `Engine.carried`, with successive datagrams of one carrier together."""
    strays: Final[list[tuple[bytes, Endpoint]]]
    """As `Engine.strays`."""
    more: Final[bool]
    """As `PumpResult.more`."""
    blocked: Final[bool]
    """As `PumpResult.blocked`."""
    pending: Final[bool]
    """As `Engine.pending`, before the caller handles the events."""
    may_collect: Final[bool]
    """The turn was part of a bulk transfer that goes on without it: the caller may let datagrams collect in the socket
    for a millisecond before the next one, so that a batch of them costs one turn. A turn that received nothing, or
    many datagrams, never reports it, nor does one of small exchanges."""
    deadline: Final[float]
    """As `Engine.deadline`."""

@final
class BufferBudget:
    """Bytes that the connections' buffers of several engines share, for example of all engines in a process.

    An engine holds at most what is still free, and so does each peer of what its engine may still take, so that any
    number of busy engines and peers leaves room for others. A released engine gives its bytes back.
    """

    def __new__(cls, limit: int) -> BufferBudget: ...
    @property
    def limit(self) -> int: ...
    @property
    def used(self) -> int: ...

@final
class Engine:
    """One overlay node: a key pair, its peers, its addresses and its TCP connections.

    Args:
        private_key: 32 bytes.
        mtu: the overlay's MTU, IP header included: 576..8192, and at least 1280 for IPv6.
        receive_buffer, send_buffer: bytes up to which the buffers of each connection grow, 4096 to 64 MiB. They start
            with 16 KiB, double when half of the receive buffer is read within one round trip, or when the windows let
            more than half of the send buffer be in flight, and shrink again on idle connections. The receive buffer
            is the window that the other end sees.
        max_connections: maximum number of connections in all states, half-open ones included.
        reserved_for_dials: number of these that only `connect` may use; peers may open the rest.
        fair: limits the inbound connections of a peer to the number that is still free for all peers, so that no number
            of peers can occupy all; further ones are dropped and counted as `share_reached`.
        max_buffer_bytes: maximum size of all connections' buffers together, with 2 KiB for each connection. A peer's
            connections are accepted only while what the peer holds is at most what is still free, and their buffers
            grow up to half of that.
        budget: bytes that this engine shares with others, in addition to `max_buffer_bytes`.
        connect_timeout: seconds for which `connect` waits for the other end.
        handshakes_per_second: rate above which senders of handshakes must first prove their address (cookie replies).
            A proved address (/32, or /64) then has a rate of 20 a second, and a burst of 5.
        seed: for tests; makes ports and sequence numbers repeatable. None takes them from the operating system.
        date: for tests; seconds since 1970 at the first `now`. None asks the operating system. Peers accept a handshake
            only if its date is after that of the last one.
    """

    def __new__(
        cls,
        private_key: bytes,
        *,
        mtu: int = 1280,
        receive_buffer: int = 4194304,
        send_buffer: int = 4194304,
        max_connections: int = 4096,
        reserved_for_dials: int = 0,
        fair: bool = False,
        max_buffer_bytes: int = 268435456,
        budget: BufferBudget | None = None,
        connect_timeout: float = 60.0,
        handshakes_per_second: int = 100,
        seed: bytes | None = None,
        date: float | None = None,
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
        """Add a peer or update it in place. The path of a pinned peer does not change.

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
        """Start a handshake now. False if the peer or its endpoint is unknown, or if it did not go out.

        One that did not go out, because too many datagrams wait, is repeated as one without a response is.

        Meant for every stored endpoint after a restart, because peers continue their old sessions. Without this call,
        the engine answers a packet of an old session with a handshake (at most once a second at the endpoint, and once
        a second elsewhere), but the packet is lost.
        """

    def pin(self, public_key: bytes, path: Path) -> bool:
        """Send all datagrams to this peer along `path`. Its sessions stay.

        The peer's authenticated datagrams are accepted from everywhere, but do not change its path; only the answer to
        a handshake of the peer takes the way on which the handshake came. False for an unknown peer.
        """
    def unpin(self, public_key: bytes) -> bool:
        """Forget the path of this peer, and learn it again from its datagrams. Its sessions stay. False if unknown."""
    def reset_session(self, public_key: bytes) -> bool:
        """Drop the sessions of this peer, as if it were removed and added again with the same settings and path.

        Its connections stay. False if unknown.
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

        `backlog` limits the connections that are not yet established. When it is reached, the oldest one of the peer
        that holds most of them gives way to a peer that holds fewer, counted as `half_open_evicted`; else the new one
        is dropped, counted as `backlog_full`. A second call for a port changes its backlog.
        """
    def unlisten(self, port: int) -> bool:
        """Stop accepting connections to a port; existing ones continue. False if the port was not listening."""

    # Connections

    def connect(self, address: str, port: int, now: float) -> int:
        """Open a connection; `Connected` or `ConnectFailed` follows.

        Raises:
            NoRoute, NoEndpoint, LimitReached: nothing was sent.
        """
    def write(self, conn: int, data: bytes | bytearray | memoryview, start: int = 0) -> int:
        """Copy as much of `data` from byte `start` on into the send buffer as fits, and return the number of bytes.

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

    # UDP inside the overlay

    def udp_listen(self, port: int) -> None:
        """Receive datagrams to a port on all of this node's addresses, as far as `set_inbound` allows them.

        Raises:
            LimitReached: there are 1,024 UDP sockets.
        """
    def udp_connect(self, address: str, port: int) -> tuple[int, OverlayAddress]:
        """Make a socket that exchanges datagrams with one address and port, and needs no rule for that.

        Returns its number, which is above all ports and never reused, and its local address.

        Raises:
            NoRoute, NoEndpoint, LimitReached.
        """
    def udp_send(
        self, socket: int, data: bytes | bytearray | memoryview, remote: tuple[str, int] | None = None
    ) -> bool:
        """Queue a datagram from a listening port to `remote`, or from a connected socket without `remote`.

        A listening port sends from the address of ours at which `remote` asked last, if it is among the 1,024 clients
        that asked lately at another address than our first one; else from the first one.

        False if it was dropped: the socket is closed, or the queue of 1,024 datagrams and 2 MiB, of which the datagrams
        to one peer may take as much as is still free for all, is full (counted as `udp_dropped`). No datagram is
        fragmented.

        Raises:
            NoRoute, NoEndpoint.
            ValueError: the datagram is longer than the MTU less 28 (IPv4) or 48 bytes (IPv6), or `remote` is invalid.
        """
    def udp_close(self, socket: int) -> bool:
        """Close a listening port or a connected socket; what waits for `events` is dropped. False if it was closed."""

    # Datagrams and time

    def receive(self, datagram: bytes | bytearray | memoryview, source: Path, now: float) -> None:
        """Process one datagram from outside. Never raises because of its content: an invalid one is counted."""
    def receive_all(self, datagrams: Sequence[bytes], source: Path, now: float) -> None:
        """As `receive` of each datagram in order."""
    def advance(self, now: float) -> float:
        """Perform due work: timers, retransmissions, flushes. Returns `deadline`."""
    def transmits(self) -> list[tuple[bytes, Endpoint]]:
        """Take the datagrams that are ready to send. For callers without a socket; `pump` sends them itself."""
    def carried(self) -> list[tuple[int, bytes]]:
        """Take the datagrams for carriers, each with the number of its carrier. To be called after each turn.

        At most 1024 wait; further ones are dropped and counted as `queue_full`.
        """
    def strays(self) -> list[tuple[bytes, Endpoint]]:
        """Take the datagrams that cannot be WireGuard's and have STUN's magic cookie. To be called after each turn.

        At most 64 wait, 16 from one address, each of at most 2048 bytes; further ones are dropped and counted as
        `strays_dropped`.
        """
    def aggregate(self, fd: int) -> bool:
        """Let the kernel pass a socket's datagrams to `pump` in runs of one sender, which costs less.

        From then on, `pump` must be called with this socket only. False, and nothing changed, if the kernel does not
        support it.
        """
    def pump(self, fd: int, now: float, budget: int = 256) -> PumpResult:
        """Receive up to `budget` datagrams from a non-blocking UDP socket, perform due work, and send ready datagrams.

        Handshakes have a budget of their own, 8 for each call, because each costs as much as many packets. What was
        received beyond a budget is kept for the next call, and `more` is true. With a `budget` of 0, nothing is
        received. The caller keeps ownership of the socket; an AF_INET6 socket may be dual-stack.

        Answers leave from the address that the peer's last datagram was sent to, while the machine has it.

        Raises:
            OSError: the socket is unusable. Errors of a single datagram are counted instead.
        """
    def turn(self, fd: int, now: float, budget: int = 256) -> Turn:
        """Run a whole turn: `pump`, `events`, what these made due without a budget, `carried` and `strays`.

        Raises:
            OSError: the socket is unusable. `events` still returns what happened before.
        """
    def events(self) -> list[Event]:
        """Take the events since the last call, in order for each connection. Reads the connections' data."""
    def counters(self) -> dict[str, int]:
        """Return totals since the start. Dropped datagrams and packets:

        malformed, bad_mac, unknown_key, unknown_session, decrypt_failed, replayed, replayed_handshake, rate_limited,
        strays_dropped,
        bad_source, bad_destination, bad_packet, unsupported, denied_inbound, not_listening, unmatched,
        backlog_full, half_open_evicted, udp_dropped,
        limit_reached, internal_error, no_endpoint, queue_full, send_failed;
        also: handshakes, datagrams_in, datagrams_out, bytes_in, bytes_out, accepted, connected, and the current values
        connections, buffer_bytes, half_open, udp_sockets, udp_asked (clients that asked a listening port at another
        address than our first one).
        """
