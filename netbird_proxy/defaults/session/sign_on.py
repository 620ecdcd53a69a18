"""Single sign-on, bound to the browser that began it.

A cookie keeps the destination beside a random number, of which the identity provider sees only the hash; so any member
of the cluster can finish a login that another began. The return address carries the destination too, under a MAC: a
browser keeps few such cookies, and more tabs than that may wait for the provider.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from netbird_proxy import Buckets, ExchangeView, LatestTable, Proxy, Share
from netbird_proxy.defaults.session.cookies import drop_cookie, set_cookie
from netbird_proxy.defaults.session.return_paths import ROOT, own_return_path
from netbird_proxy.defaults.session.site import Providers, Site

COOKIE = b"__Host-nb_login_"
SECONDS = 600
AT_MOST = 5
"""Logins that one browser may have begun: in as many tabs."""
COOKIE_BYTES = 4096
"""Browsers drop a cookie that is longer, its attributes included."""
LINK_BYTES = 1024
"""Maximum bytes of a destination in the return address, which becomes part of the provider's address."""
KEPT = 1024
"""Destinations that fit neither place and are kept here; the oldest is forgotten, and its login ends at `/`."""


STARTS, STARTS_PER_SECOND, STARTERS = 60, 1.0, 8192
"""Logins that one source may start at once, and then each second, because each is a question to management (divided by
the number of workers); and the number of sources whose starts are counted. An office behind one address starts its day
within the first number."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A login that this browser began.

    Attributes:
        to: the destination.
        done: the cookie to drop.
    """

    to: str
    done: tuple[bytes, bytes]


class SignOns:
    """The logins that this process began, and those that other members of the cluster did."""

    def __init__(self, providers: Providers, clock: Callable[[], float] = time.monotonic) -> None:
        self._providers = providers
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._kept: LatestTable[str, tuple[str, float]] = LatestTable(KEPT)
        self._starts: Buckets | None = None

    def may_begin(self, source: str, share: Share) -> bool:
        """Count the start of a login. False if this source started too many; "" is no source and has no limit."""
        if self._starts is None:
            burst, rate = share.count(STARTS), share.rate(STARTS_PER_SECOND)
            self._starts = Buckets(self._clock, burst=burst, per_second=rate, keys=STARTERS)
        return not source or self._starts.take(source)

    async def begin(
        self, exchange: ExchangeView, site: Site, proxy: Proxy, to: str, *, again: bool = False
    ) -> tuple[str, list[tuple[bytes, bytes]]]:
        """The provider's address, and the cookies to set. Raises ManagementError.

        Args:
            again: this login was begun for one whose return cookies neither its cookie nor a session.
        """
        secret = secrets.token_urlsafe(32)
        proof = _hash(secret)
        authority = exchange.authority.decode("ascii")
        address = f"https://{authority}{ROOT}/return?f={proof}"
        if len(to) <= LINK_BYTES:
            link = _text64(to)
            address += f"&to={link}&m={self._mac(site, proof, link, again=again)}{'&again=1' if again else ''}"
        url = await self._providers.url(site, proxy, address)
        cookie = set_cookie(_name(proof), secret.encode() + b"." + _text64(to).encode(), SECONDS)
        if len(cookie[1]) > COOKIE_BYTES:
            self._keep(proof, to)
            cookie = set_cookie(_name(proof), secret.encode() + b".", SECONDS)
        older = [name for name, _ in _begun(exchange)]
        return url, [*(drop_cookie(name) for name in older[: max(0, len(older) - AT_MOST + 1)]), cookie]

    def finish(self, exchange: ExchangeView, proof: str) -> Begun | None:
        """The login of this return; None for one that this browser did not begin, or has no cookie of any more."""
        values = [value for name, value in _begun(exchange) if name == _name(proof)]
        if len(values) != 1:
            return None
        secret, _, place = values[0].partition(b".")
        if not hmac.compare_digest(_hash(secret.decode("latin-1")).encode(), proof.encode()):
            return None
        to = _from_text64(place.decode("latin-1")) if place else self._kept.get(proof, ("/", 0.0))[0]
        return None if to is None else Begun(own_return_path(to), drop_cookie(_name(proof)))

    def link(self, site: Site, proof: str, link: str, mac: str, *, again: bool) -> str | None:
        """The destination that a return address carries; None where this process did not write it."""
        expected = self._mac(site, proof, link, again=again)
        if not proof or not hmac.compare_digest(expected.encode(), mac.encode("utf-8", "replace")):
            return None
        to = _from_text64(link)
        return None if to is None else own_return_path(to)

    def _mac(self, site: Site, proof: str, link: str, *, again: bool) -> str:
        text = "\n".join((site.service, site.host, proof, link, str(again)))
        return base64.urlsafe_b64encode(hmac.digest(self._key, text.encode(), "sha256")).rstrip(b"=").decode()

    def _keep(self, proof: str, to: str) -> None:
        now = self._clock()
        while self._kept and next(iter(self._kept.values()))[1] <= now:
            self._kept.popitem(last=False)
        self._kept.keep(proof, (to, now + SECONDS))


def _begun(exchange: ExchangeView) -> list[tuple[bytes, bytes]]:
    cookies: list[tuple[bytes, bytes]] = []
    for line in exchange.headers.get_all(b"cookie"):
        for part in line.split(b";"):
            name, _, value = part.strip(b" \t").partition(b"=")
            if name.startswith(COOKIE):
                cookies.append((name, value))
    return cookies


def _name(proof: str) -> bytes:
    return COOKIE + hashlib.sha256(proof.encode("utf-8", "replace")).hexdigest()[:16].encode()


def _hash(secret: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(secret.encode("latin-1")).digest()).rstrip(b"=").decode()


def _text64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def _from_text64(text: str) -> str | None:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
    except ValueError:
        return None
