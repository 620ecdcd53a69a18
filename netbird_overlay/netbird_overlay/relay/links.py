"""Decides, sans-IO, which relays are dialed, which is home, and which peers are subscribed where.

One connection, a *link*, carries all peers at its relay. The home link goes to the first relay of the configuration
that accepts us. Foreign links go to relays that peers name as theirs, while some peer is open there.

The caller passes the outcomes of dials and the relay's notices, and performs the effects that `take` returns, in order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from netbird_overlay.relay.effects import Announce, Dial, Effect, HangUp, HomeChanged, Offline, Online
from netbird_wire.backoff import Backoff
from netbird_wire.relay import peer_id
from netbird_wire.relay_tokens import RelayToken
from netbird_wire.relay_url import BadRelayUrl, RelayUrl, parse_relay_url

MAX_TRIES: Final = 7
"""Maximum number of relays of the configuration that are dialed at the same time."""
MAX_URLS: Final = 64
TRY_SECONDS: Final = 30.0
"""Maximum time of a search for the home relay, and of a foreign relay's dial."""
FIRST_RETRY: Final = 1.5
"""Wait before the lost home relay is dialed again."""
RETRY, LONGEST_RETRY = 2.0, 60.0
"""First and longest wait between two searches for a home relay."""
STEADY_SECONDS: Final = 10.0
"""A home link that lasted less does not reset these waits."""
OPEN_SECONDS: Final = 30.0
"""Maximum time until an opened peer is online."""
SWEEP_SECONDS, MIN_AGE = 60.0, 5.0
"""Interval in which unused foreign links are closed, and the age under which they are not."""
MAX_FOREIGN: Final = 32
MAX_OPEN: Final = 65_536
"""Maximum number of peers open at one relay."""
EARLY_SECONDS, MAX_EARLY = 5.0, 256
"""Time for which one datagram of a peer that is not open is kept, and maximum number of such peers."""
MAX_ALIASES: Final = 64
ALIAS_PAUSE: Final = 60.0
"""Seconds without dials to further foreign relays after one of them was a relay that we have under another name. The
relay has then cut the earlier link, and a peer that goes on to name such URLs must not cut it again and again."""


@dataclass(slots=True)
class Open:
    """A peer that the caller opened at one server, `server` as the caller spells it."""

    key: bytes
    server: str
    online: bool = False
    early: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Link:
    """A connection to one relay.

    Attributes:
        server: the URL by which peers are opened on it: its instance URL (home) or the one that a peer named (foreign).
        instance: its instance URL, "" before it is authenticated.
        up: time at which it was authenticated; None before.
    """

    number: int
    url: RelayUrl
    server: str
    home: bool
    born: float
    instance: str = ""
    up: float | None = None
    opens: dict[bytes, Open] = field(default_factory=dict)


class Links:
    """The state of all links. Times are seconds on one clock; `backoff` paces the searches for a home relay.

    Attributes:
        home: instance URL of the home relay, "" while there is none.
        home_ip: its packed address, 4 or 16 bytes; b"" while there is none.
        counters: what was refused or dropped, by reason.
    """

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff(RETRY, LONGEST_RETRY, spread=(0.75, 1.0))
        self._urls: tuple[RelayUrl, ...] = ()
        self._token: RelayToken | None = None
        self._effects: list[Effect] = []
        self._links: dict[int, Link] = {}
        self._servers: dict[str, Link] = {}
        self._numbers = 0
        self._home: Link | None = None
        self._queue: list[RelayUrl] = []
        self._search_until = math.inf
        self._search_at = math.inf
        self._preferred: RelayUrl | None = None
        self._sweep_at = math.inf
        self._waiting: dict[tuple[int, bytes], float] = {}
        self._early: dict[tuple[int, bytes], tuple[float, bytes]] = {}
        self._aliases: dict[str, str] = {}
        self._foreign_from = -math.inf
        self.home = ""
        self.home_ip = b""
        self.counters: Counter[str] = Counter()

    @property
    def is_on(self) -> bool:
        return bool(self._urls) and self._token is not None

    @property
    def deadline(self) -> float:
        """Time at which `advance` must be called; infinite if there is none."""
        first = next(iter(self._waiting.values()), math.inf)
        return min(self._search_at, self._search_until, self._sweep_at, first)

    def take(self) -> list[Effect]:
        """The effects to perform, in order."""
        effects, self._effects = self._effects, []
        return effects

    # Configuration -------------------------------------------------------------------------------------------------

    def configure(self, urls: Sequence[str], token: RelayToken | None, now: float) -> None:
        """Replace the URLs and the token. No URLs: every link ends. No token: the last one stays.

        A link that is up stays up: a token is needed to connect only, and a URL that left the list is not dialed again.
        """
        parsed: dict[str, RelayUrl] = {}
        for text in urls[:MAX_URLS]:
            try:
                parsed.setdefault(text, parse_relay_url(text))
            except BadRelayUrl:
                self.counters["bad_urls"] += 1
        urls_before, token_before = self._urls, self._token
        self._urls, self._token = tuple(parsed.values()), token or self._token
        if not self.is_on:
            self._end_all()
        elif self._home is None and self._urls != urls_before:
            self._end_search()
            self._backoff.reset()
            self._search_at = now
        elif self._home is None and self._token != token_before and not self._tries():
            self._search_at = now  # the last one may have been refused
        self.advance(now)

    def _end_all(self) -> None:
        for link in list(self._links.values()):
            self._end(link)
        self._queue.clear()
        self._search_at = self._search_until = self._sweep_at = math.inf
        self._preferred = None
        self._aliases.clear()

    # The home relay ------------------------------------------------------------------------------------------------

    def _search(self, now: float) -> None:
        """Dial the relays of the configuration, or only the one that was home and was just lost."""
        self._search_at = math.inf
        self._search_until = now + TRY_SECONDS
        preferred, self._preferred = self._preferred, None
        self._queue = [preferred] if preferred in self._urls and preferred is not None else list(self._urls)
        self._dial_queued(now)

    def _dial_queued(self, now: float) -> None:
        while self._queue and self._token is not None and len(self._tries()) < MAX_TRIES:
            url = self._queue.pop(0)
            self._dial(Dial(self._next(), url, "", self._token), "", home=True, now=now)
        if not self._tries():
            self._search_until = math.inf
            self._search_at = now + self._backoff.next_wait()

    def _tries(self) -> list[Link]:
        return [link for link in self._links.values() if link.home and link.up is None]

    def _end_search(self) -> None:
        for link in self._tries():
            self._end(link)
        self._queue.clear()
        self._search_until = math.inf

    # Links ---------------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def _dial(self, dial: Dial, server: str, *, home: bool, now: float) -> Link:
        link = self._links[dial.link] = Link(dial.link, dial.url, server, home, born=now)
        if not home:
            self._servers[server] = link
            self._sweep_at = min(self._sweep_at, now + SWEEP_SECONDS)
        self._effects.append(dial)
        return link

    def authenticated(self, number: int, instance_url: str, address: bytes, now: float) -> None:
        """The relay of a link accepted us. `address` is its packed address."""
        link = self._links.get(number)
        if link is None or link.up is not None:
            return
        try:
            parse_relay_url(instance_url)
        except BadRelayUrl:
            self.counters["bad_urls"] += 1
            instance_url = link.url.text  # peers could not dial the other
        same = [other for other in self._links.values() if other.instance == instance_url]
        link.up, link.instance = now, instance_url
        if link.home:
            self._found_home(link, instance_url, address)
        elif same:
            # The relay keeps one connection an id: it has replaced the earlier link by this one. That one will be
            # dialed again, and peers that name this URL meet us there.
            self._foreign_from = now + ALIAS_PAUSE
            self.leads_to(number, same[0].number)
        elif link.opens:
            self._effects.append(Announce(number, tuple(link.opens), True))

    def leads_to(self, number: int, other: int) -> None:
        """A foreign link's URL is the relay of another link under another name: its peers meet us by that link when
        they are opened again."""
        link, same = self._links.get(number), self._links.get(other)
        if link is None or link.home:
            return
        if same is not None:
            while len(self._aliases) >= MAX_ALIASES:
                del self._aliases[next(iter(self._aliases))]
            self._aliases[link.server] = same.server
        self._end(link)

    def _found_home(self, link: Link, instance_url: str, address: bytes) -> None:
        link.server = instance_url
        self._home = link
        self._end_search()
        self._search_at = math.inf
        for foreign in [other for other in self._links.values() if not other.home]:
            if instance_url in (foreign.server, foreign.instance):
                self._end(foreign)  # replaced by this link, as above
        self._servers[instance_url] = link
        self.home, self.home_ip = instance_url, address
        self._effects.append(HomeChanged())

    def lost(self, number: int, now: float) -> None:
        """A dial failed, or a link ended."""
        link = self._links.get(number)
        if link is None:
            return
        was_home = link is self._home
        self._end(link, report=False)
        if was_home:
            steady = link.up is not None and now - link.up >= STEADY_SECONDS
            if steady:
                self._backoff.reset()
                self._preferred = link.url
            self._search_at = now + (FIRST_RETRY if steady else self._backoff.next_wait())
        elif link.home and self._home is None and self._search_until < math.inf:
            self._dial_queued(now)

    def _end(self, link: Link, *, report: bool = True) -> None:
        self._links.pop(link.number, None)
        if self._servers.get(link.server) is link:
            del self._servers[link.server]
        if report:
            self._effects.append(HangUp(link.number))
        for peer, opened in link.opens.items():
            self._waiting.pop((link.number, peer), None)
            self._effects.append(Offline(opened.key, opened.server))
        link.opens.clear()
        for at in [at for at in self._early if at[0] == link.number]:
            del self._early[at]
        if link is self._home:
            self._home = None
            self.home, self.home_ip = "", b""
            self._effects.append(HomeChanged())

    # Peers ---------------------------------------------------------------------------------------------------------

    def open(self, key: bytes, server: str, address: bytes, now: float) -> None:
        """Ask for a path to the peer at a server, which is dialed if it has no link. Idempotent."""
        peer = peer_id(key)
        link = self._link_at(server)
        if link is None:
            link = self._dial_foreign(server, address, now)
        if link is None or (peer not in link.opens and len(link.opens) >= MAX_OPEN):
            self.counters["opens_refused"] += 1
            self._effects.append(Offline(key, server))
            return
        if peer in link.opens:
            self._rename(link.opens[peer], server)
            return
        opened = link.opens[peer] = Open(key, server)
        self._waiting[link.number, peer] = now + OPEN_SECONDS
        early = self._early.pop((link.number, peer), None)
        if early is not None and now - early[0] <= EARLY_SECONDS:
            opened.early.append(early[1])
        if link.up is not None:
            self._effects.append(Announce(link.number, (peer,), True))

    def _rename(self, opened: Open, server: str) -> None:
        """A peer that is open at a relay is opened by another name of that relay: the first name's path ends."""
        if opened.server == server:
            return
        self._effects.append(Offline(opened.key, opened.server))
        opened.server = server
        if opened.online:
            self._effects.append(Online(opened.key, server, ()))

    def _link_at(self, server: str) -> Link | None:
        link = self._servers.get(server) or self._servers.get(self._aliases.get(server, ""))
        if link is None and self._home is not None and self._is_home(server, self._home):
            return self._home
        return link

    def _is_home(self, server: str, home: Link) -> bool:
        """True for another spelling of the home relay. A second connection there would end the first."""
        try:
            url, instance = parse_relay_url(server), parse_relay_url(home.instance)
        except BadRelayUrl:
            return False
        return (url.host, url.port) in ((instance.host, instance.port), (home.url.host, home.url.port))

    def _dial_foreign(self, server: str, address: bytes, now: float) -> Link | None:
        """Dial a relay that a peer named; None if it must not be dialed."""
        if not self._urls or self._token is None or now < self._foreign_from:
            return None
        try:
            url = parse_relay_url(server)
        except BadRelayUrl:
            return None
        if not url.secure and all(configured.secure for configured in self._urls):
            return None  # our token would cross the network in the clear
        foreign = [link for link in self._links.values() if not link.home]
        if len(foreign) >= MAX_FOREIGN:
            unused = next((link for link in foreign if not link.opens), None)
            if unused is None:
                return None
            self._end(unused)
        text = str(ip_address(address)) if len(address) in (4, 16) else ""
        return self._dial(Dial(self._next(), url, text, self._token, foreign=True), server, home=False, now=now)

    def close(self, key: bytes, server: str) -> None:
        """The caller needs the path no longer. Nothing is reported. Idempotent."""
        peer = peer_id(key)
        link = self._link_at(server)
        opened = link.opens.get(peer) if link is not None else None
        if link is None or opened is None or opened.server != server:
            return
        del link.opens[peer]
        self._waiting.pop((link.number, peer), None)
        if link.up is not None:
            self._effects.append(Announce(link.number, (peer,), False))

    def online(self, number: int, peers: Iterable[bytes], now: float) -> None:
        """The relay announced these ids as connected."""
        link = self._links.get(number)
        if link is None:
            return
        for peer in peers:
            opened = link.opens.get(peer)
            if opened is not None and not opened.online:
                opened.online = True
                self._waiting.pop((number, peer), None)
                early, opened.early = tuple(opened.early), []
                self._effects.append(Online(opened.key, opened.server, early))

    def offline(self, number: int, peers: Iterable[bytes]) -> None:
        """The relay announced these ids as gone."""
        link = self._links.get(number)
        if link is None:
            return
        for peer in peers:
            if (opened := link.opens.pop(peer, None)) is not None:
                self._waiting.pop((number, peer), None)
                self._effects.append(Offline(opened.key, opened.server))
                self._effects.append(Announce(number, (peer,), False))

    # Datagrams -----------------------------------------------------------------------------------------------------

    def route(self, key: bytes, server: str) -> tuple[int, bytes] | None:
        """The link for the peer's datagrams, and its relay id; None if there is no path."""
        link = self._link_at(server)
        if link is None:
            return None
        peer = peer_id(key)
        opened = link.opens.get(peer)
        return (link.number, peer) if opened is not None and opened.online else None

    def arrived(self, number: int, peer: bytes, payloads: Sequence[bytes], now: float) -> tuple[bytes, str] | None:
        """The key and server of the peer whose datagrams these are; None if it has no path yet.

        Then the first is kept: a peer that is quicker than us sends the begin of a WireGuard handshake, and would
        repeat it only after 5 s.
        """
        link = self._links.get(number)
        if link is None:
            return None
        opened = link.opens.get(peer)
        if opened is not None:
            if opened.online:
                return opened.key, opened.server
            if not opened.early:
                opened.early.append(payloads[0])
            return None
        self._keep_early((number, peer), payloads[0], now)
        return None

    def _keep_early(self, at: tuple[int, bytes], payload: bytes, now: float) -> None:
        while self._early:
            oldest = next(iter(self._early))
            if now - self._early[oldest][0] <= EARLY_SECONDS:
                break
            del self._early[oldest]
        if at in self._early:
            return
        if len(self._early) >= MAX_EARLY:
            self.counters["early_dropped"] += 1
            return
        self._early[at] = (now, payload)

    # Time ----------------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Do what is due."""
        if now >= self._search_until:
            self._end_search()
            self._search_at = now + self._backoff.next_wait()
        if now >= self._search_at:
            self._search(now)
        while self._waiting:
            (number, peer), due = next(iter(self._waiting.items()))
            if now < due:
                break
            self.offline(number, (peer,))
        if now >= self._sweep_at:
            for link in [link for link in self._links.values() if not link.home]:
                if not link.opens and now - link.born > MIN_AGE:
                    self._end(link)
            self._sweep_at = math.inf if self._home_only() else now + SWEEP_SECONDS

    def _home_only(self) -> bool:
        return all(link.home for link in self._links.values())
