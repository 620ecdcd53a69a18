"""The rules of the signal server, without gRPC: registered peers, and the messages that pass between them.

The server cannot read or verify messages: a box proves its sender to the receiver only. Anybody may register any key,
as at NetBird's server, and by that gets what others send to this key, sealed. So a stranger can keep a peer from
receiving, but learns and forges nothing. The limits here bound even that: see `Limits`.

    Refused
    ├── Malformed    a key is missing or not canonical, or a message is too large
    ├── Unknown      the network has no peer with this key
    ├── Exceeded     over a limit; to be tried again later
    └── Stopping     the server is stopping; to be tried again at once, elsewhere or at its successor
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from netbird_host.tables import LatestTable
from netbird_signal.mailbox import BYTES, Lane, Mailbox
from netbird_signal.rates import Bucket, Rate
from netbird_wire.envelope import BadKey, parse_key
from netbird_wire.signalexchange_pb2 import EncryptedMessage

MESSAGE_BYTES: Final = 32 << 10
"""Maximum size of a message. Agents send about 300 bytes."""
QUEUED_BYTES: Final = 64 << 20
"""Maximum size of the messages in all mailboxes; beyond it a mailbox may hold `RESERVED_BYTES` only, so that receivers
that read are not hurt by those that do not."""
RESERVED_BYTES: Final = 8 << 10
LIGHT: Final = 64.0
"""A sender with fewer recent messages than this is never refused for the sum of all senders."""
SOURCES: Final = 16_384
"""Maximum number of source addresses whose rates are remembered."""
ALL_MESSAGES: Final = Rate(per_second=500, burst=5_000)
MESSAGES_OF_SOURCE: Final = Rate(per_second=1_000, burst=10_000)
MESSAGES_OF_SENDER: Final = Rate(per_second=100, burst=2_000)
MESSAGES_OF_STRANGERS: Final = Rate(per_second=20, burst=100)
REGISTRATIONS: Final = Rate(per_second=50, burst=5_000)
TAKEOVERS: Final = Rate(per_second=1, burst=60)
CONTESTED: Final = 4
"""Number of times that a key's stream may move between addresses in `CONTESTED_SECONDS` without a report."""
CONTESTED_SECONDS: Final = 60.0
COUNTERS: Final = {
    "accepted": "messages for a registered receiver",
    "dropped": "messages that a full mailbox dropped",
    "receiver_away": "messages for a receiver that is not registered",
    "unknown_peer": "registrations of a key that no peer has",
    "other_account": "messages whose sender and receiver are not peers of one account; the sender is not told",
    "malformed": "messages and registrations with a key that is none",
    "oversized": "messages above the maximum size",
    "over_rate": "messages above the rate of their sender",
    "source_over_rate": "messages above the rate of their source",
    "all_over_rate": "messages above the rate of all senders",
    "registered": "streams that were registered",
    "replaced": "streams that a later one of the same key replaced",
    "taken_over": "of these, streams that the later one replaced from another source",
    "registrations_over_rate": "registrations above the rate of their source",
    "takeovers_over_rate": "registrations of keys with a stream of another source, above the rate",
    "streams_full": "registrations above the number of streams",
    "streams_of_source_full": "registrations above the number of streams of a source",
    "slow_readers": "streams that ended because the client did not read",
}
"""Names and meanings of the counters; they only grow."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one server. A source is an IPv4 address or an IPv6 /64.

    Attributes:
        streams: maximum number of registered streams.
        streams_of_source: maximum number of registered streams of one source.
        all_messages: rate of messages of all senders together; it applies to senders with many messages.
        messages_of_source: rate of messages of one source.
        messages: rate of messages of a sender that is registered from the source it sends from.
        messages_of_strangers: rate of messages of all other senders of a source together.
        registrations: rate of new streams of a source.
        takeovers: rate at which a source may replace live streams of other sources. It bounds a stranger who registers
            other peers' keys, and is more than the peers behind one address need that come from other networks.
    """

    streams: int = 20_000
    streams_of_source: int = 5_000
    all_messages: Rate = ALL_MESSAGES
    messages_of_source: Rate = MESSAGES_OF_SOURCE
    messages: Rate = MESSAGES_OF_SENDER
    messages_of_strangers: Rate = MESSAGES_OF_STRANGERS
    registrations: Rate = REGISTRATIONS
    takeovers: Rate = TAKEOVERS


class Refused(Exception):
    """A message or registration is refused; the text is for the caller and quotes nothing of it."""


class Malformed(Refused):
    """The caller must not try again."""


class Unknown(Refused):
    """The key belongs to no peer of the network."""


class Exceeded(Refused):
    """A limit is reached. The caller may try again later."""


class Stopping(Refused):
    """The server is stopping."""

    def __init__(self) -> None:
        super().__init__(Ending.STOPPING.value)


class Ending(Enum):
    """The reason that the server ends a stream, as text for the client."""

    REPLACED = "this peer has registered again"
    STOPPING = "the server is stopping"
    SLOW = "the client does not read"


@dataclass(slots=True)
class _Source:
    """The rates of one source."""

    messages: Bucket
    strangers: Bucket
    registrations: Bucket
    takeovers: Bucket


@dataclass(slots=True, eq=False)
class Registration:
    """One registered stream.

    Attributes:
        end: reason that the stream must end; None while it may go on.
        wake: called when a message or an end arrives.
    """

    key: str
    source: str
    wake: Callable[[], None]
    bucket: Bucket
    mailbox: Mailbox = field(default_factory=Mailbox)
    end: Ending | None = None
    moves: int = 0
    moves_since: float = 0.0


Elsewhere = Callable[[EncryptedMessage, Lane], None]
"""Takes a message whose receiver is not registered here, when several processes serve one network. It must not wait and
must not raise."""
AccountOf = Callable[[str], str | None]
"""Returns the account of a key's peer, or None."""
OnContested = Callable[[str, str, str], None]
"""Gets the key whose stream moves to and fro, and the sources that it moved from and to."""


class Exchange:
    """The registered streams and their mailboxes.

    Args:
        clock: returns seconds, monotonic.
        account_of: where it is given, only peers of accounts may register, and messages pass only between peers of one
            account. Without it, as alone, the server knows no peers.
        elsewhere: gets the messages for receivers that are not registered here; by default they are dropped.
        on_contested: called at most once a minute for each key.

    Attributes:
        counts: counters since the start, by the names in `COUNTERS`.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float],
        *,
        account_of: AccountOf | None = None,
        elsewhere: Elsewhere | None = None,
        on_contested: OnContested = lambda _key, _before, _after: None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._limits = limits
        self._clock = clock
        self._account_of = account_of
        self._elsewhere = elsewhere
        self._on_contested = on_contested
        self._streams: dict[str, Registration] = {}
        self._streams_of: Counter[str] = Counter()
        self._sources: LatestTable[str, _Source] = LatestTable(SOURCES)
        self._all = Bucket(limits.all_messages, clock())
        self._queued = 0
        self._stopped = False

    @property
    def streams(self) -> int:
        """Number of registered streams."""
        return len(self._streams)

    @property
    def queued_bytes(self) -> int:
        """Size of the messages in all mailboxes."""
        return self._queued

    def register(self, key: str, source: str, wake: Callable[[], None]) -> Registration:
        """Register a stream. An earlier one with this key is told to end, and its waiting messages move here.

        Raises Refused.
        """
        self._check_key(key)
        now = self._clock()
        earlier = self._streams.get(key)
        limits, rates = self._limits, self._rates_of(source)
        if self._stopped:
            raise Stopping
        if not rates.registrations.take(now):
            self._refuse("registrations_over_rate", "too many registrations from this address")
        if self._account_of is not None and self._account_of(key) is None:
            self.counts["unknown_peer"] += 1
            raise Unknown("no peer of this network has this key")
        if self._streams_of[source] - (earlier is not None and earlier.source == source) >= limits.streams_of_source:
            self._refuse("streams_of_source_full", "too many peers from this address")
        if earlier is None and len(self._streams) >= limits.streams:
            self._refuse("streams_full", "too many peers")
        moved = earlier is not None and earlier.source != source
        if moved and not rates.takeovers.take(now):
            self._refuse("takeovers_over_rate", "too many peers of other addresses were registered from this address")
        registration = Registration(key, source, wake, Bucket(limits.messages, now))
        if earlier is not None:
            self._replace(earlier, registration, now)
        self._streams[key] = registration
        self._streams_of[source] += 1
        self.counts["registered"] += 1
        return registration

    def unregister(self, registration: Registration) -> None:
        """The stream ended: its messages are dropped, unless a later stream has them. Idempotent."""
        if self._streams.get(registration.key) is not registration:
            return
        del self._streams[registration.key]
        self._leave(registration.source)
        self._queued -= registration.mailbox.cost

    def send(self, message: EncryptedMessage, source: str) -> None:
        """Put a message into its receiver's mailbox. A receiver that is not registered is no error.

        Raises Refused.
        """
        size = message.ByteSize()
        if size > MESSAGE_BYTES:
            self.counts["oversized"] += 1
            raise Malformed(f"a message has at most {MESSAGE_BYTES} bytes")
        self._check_key(message.key)
        self._check_key(message.remoteKey)
        lane = self._admit(message.key, source)
        if not self._may_meet(message.key, message.remoteKey):
            self.counts["other_account"] += 1
            return
        receiver = self._streams.get(message.remoteKey)
        if receiver is None:
            self.counts["receiver_away"] += 1
            if self._elsewhere is not None:
                self._elsewhere(message, lane)
            return
        self._put(receiver, lane, message, size)

    def accept(self, message: EncryptedMessage, lane: Lane) -> bool:
        """Take a message that another process of this network judged. False if its receiver is not here either."""
        receiver = self._streams.get(message.remoteKey)
        if receiver is None:
            return False
        self._put(receiver, lane, message, message.ByteSize())
        return True

    def take(self, registration: Registration) -> EncryptedMessage | None:
        """Take the next message for a stream; None if none waits, and once the stream must end."""
        if registration.end is not None:
            return None
        before = registration.mailbox.cost
        message = registration.mailbox.take()
        self._queued -= before - registration.mailbox.cost
        return message

    def stop(self) -> None:
        """End every stream and refuse new ones."""
        self._stopped = True
        for registration in self._streams.values():
            registration.end = registration.end or Ending.STOPPING
            registration.wake()

    def _put(self, receiver: Registration, lane: Lane, message: EncryptedMessage, size: int) -> None:
        mailbox = receiver.mailbox
        before = mailbox.cost
        limit = BYTES if self._queued < QUEUED_BYTES else RESERVED_BYTES
        dropped = mailbox.put(lane, message, size, limit=limit)
        self._queued += mailbox.cost - before
        self.counts["accepted"] += 1
        self.counts["dropped"] += dropped
        receiver.wake()

    def _replace(self, earlier: Registration, later: Registration, now: float) -> None:
        self.counts["replaced"] += 1
        self._leave(earlier.source)
        later.mailbox, earlier.mailbox = earlier.mailbox, Mailbox()
        later.bucket = earlier.bucket if earlier.source == later.source else later.bucket
        later.moves, later.moves_since = earlier.moves, earlier.moves_since
        earlier.end = Ending.REPLACED
        earlier.wake()
        if earlier.source == later.source:
            return
        self.counts["taken_over"] += 1
        if now - later.moves_since > CONTESTED_SECONDS:
            later.moves, later.moves_since = 0, now
        later.moves += 1
        if later.moves == CONTESTED:
            self._on_contested(later.key, earlier.source, later.source)

    def _check_key(self, key: str) -> None:
        try:
            parse_key(key)
        except BadKey as error:
            self.counts["malformed"] += 1
            raise Malformed(str(error)) from error

    def _admit(self, sender: str, source: str) -> Lane:
        """Apply the rates to a message. Raises Exceeded."""
        now = self._clock()
        rates = self._rates_of(source)
        registration = self._streams.get(sender)
        # Anybody can name this sender: a registered peer's own rate is for its own address.
        own = registration if registration is not None and registration.source == source else None
        bucket = rates.strangers if own is None else own.bucket
        if not bucket.take(now):
            self._refuse("over_rate", "too many messages")
        if not rates.messages.take(now):
            self._refuse("source_over_rate", "too many messages from this address")
        if not self._all.take(now) and bucket.missing(now) > LIGHT:
            self._refuse("all_over_rate", "too many messages in all")
        return Lane(source, "" if own is None else sender)

    def _may_meet(self, sender: str, receiver: str) -> bool:
        if self._account_of is None:
            return True
        account = self._account_of(receiver)
        return account is not None and account == self._account_of(sender)

    def _refuse(self, counter: str, text: str) -> None:
        self.counts[counter] += 1
        raise Exceeded(text)

    def _leave(self, source: str) -> None:
        self._streams_of[source] -= 1
        if not self._streams_of[source]:
            del self._streams_of[source]

    def _rates_of(self, source: str) -> _Source:
        """Return what is left of an address's rates. Beyond the bound, the least recently used is forgotten."""
        limits, now = self._limits, self._clock()
        rates = self._sources.get(source) or _Source(
            Bucket(limits.messages_of_source, now),
            Bucket(limits.messages_of_strangers, now),
            Bucket(limits.registrations, now),
            Bucket(limits.takeovers, now),
        )
        self._sources.keep(source, rates)
        return rates
