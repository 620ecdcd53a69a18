"""Adopts sessions of NetBird's own proxy, so that people stay logged in when one proxy replaces the other.

Its cookie has no `__Host-` prefix, so a sibling domain can set one; the operator decides to trust those. The cookie is
never a login by itself: a safe request that carries it, and no session of ours, is redirected once to its own address,
with our cookie in place of NetBird's.
"""

from __future__ import annotations

from collections.abc import Callable

from netbird_proxy import Challenge, ExchangeView, Proxy, is_unsafe
from netbird_proxy.defaults.session.cookies import SESSION, drop_cookie, find, set_cookie
from netbird_proxy.defaults.session.return_paths import address, requested_path
from netbird_proxy.defaults.session.site import Site
from netbird_proxy.defaults.session.tokens import Tokens

NETBIRD = b"nb_session"


class Adoption:
    """Exchanges the cookie of NetBird's proxy for ours, if its token is valid for this service."""

    def __init__(self, site: Site, proxy: Proxy, tokens: Tokens, clock: Callable[[], float]) -> None:
        self._site = site
        self._proxy = proxy
        self._tokens = tokens
        self._clock = clock

    async def identify(self, exchange: ExchangeView) -> Challenge | None:
        """Return a redirect that sets our cookie and deletes NetBird's; None if there is nothing to adopt.

        An unsafe request is never redirected: its body would be lost. It counts as not logged in.
        """
        if exchange.scheme != "https" or is_unsafe(exchange):
            return None
        offered = find(exchange.headers, NETBIRD)
        # A second session of ours would mean a loop, in a browser that keeps both cookies.
        if len(offered) != 1 or find(exchange.headers, SESSION):
            return None
        settings = self._site.settings
        session = self._tokens.verify(offered[0], settings.key, self._site.host)
        if session is None or session.method not in settings.methods:
            return None
        left = int(min(session.issued_at + settings.max_age, session.expires_at) - self._clock())
        if left <= 0 or self._proxy.revocations.revoked(
            self._site.account, subject=session.subject, token_hash=session.hash, issued_at=session.issued_at
        ):
            return None
        place = address(exchange, requested_path(exchange)).encode("latin-1")
        return Challenge(
            303,
            "session_adopted",
            headers=(
                set_cookie(SESSION, offered[0], left),
                drop_cookie(NETBIRD),
                (b"location", place),
                (b"referrer-policy", b"no-referrer"),
                (b"cache-control", b"no-store"),
            ),
            reason="a session of NetBird's proxy was exchanged for one of ours",
        )
