"""Single sign-on, bound to the browser that began it.

Nothing is kept here between leaving and coming back, so any member of the cluster can finish what another began: where
the person wanted to go stands in a cookie, beside a random number of which the identity provider sees only the hash.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

from netbird_proxy import ExchangeView, Proxy, own_path
from netbird_proxy.defaults.session.cookies import drop_cookie, set_cookie
from netbird_proxy.defaults.session.places import ROOT
from netbird_proxy.defaults.session.site import Site, oidc_url

COOKIE = b"__Host-nb_login_"
SECONDS = 600
AT_MOST = 5
"""Logins that one browser may have begun: in as many tabs."""


async def begin(exchange: ExchangeView, site: Site, proxy: Proxy, to: str) -> tuple[str, list[tuple[bytes, bytes]]]:
    """The provider's address, and the cookies to set. Raises ManagementError."""
    secret = secrets.token_urlsafe(32)
    proof = _hash(secret)
    authority = exchange.authority.decode("ascii")
    url = await oidc_url(site, proxy, f"https://{authority}{ROOT}/return?f={proof}")
    value = secret.encode() + b"." + base64.urlsafe_b64encode(to.encode()).rstrip(b"=")
    older = [name for name, _ in _begun(exchange)]
    cookies = [drop_cookie(name) for name in older[: max(0, len(older) - AT_MOST + 1)]]
    return url, [*cookies, set_cookie(_name(proof), value, SECONDS)]


def finish(exchange: ExchangeView, proof: str) -> tuple[str, tuple[bytes, bytes]] | None:
    """Where the person wanted to go, and the cookie to drop; None for a login that this browser did not begin."""
    found = [value for name, value in _begun(exchange) if name == _name(proof)]
    if len(found) != 1:
        return None
    secret, _, place = found[0].partition(b".")
    if not hmac.compare_digest(_hash(secret.decode("latin-1")).encode(), proof.encode()):
        return None
    try:
        to = base64.urlsafe_b64decode(place + b"=" * (-len(place) % 4)).decode("ascii")
    except ValueError:
        return None
    return own_path(to), drop_cookie(_name(proof))


def _begun(exchange: ExchangeView) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    for line in exchange.headers.get_all(b"cookie"):
        for part in line.split(b";"):
            name, _, value = part.strip(b" \t").partition(b"=")
            if name.startswith(COOKIE):
                found.append((name, value))
    return found


def _name(proof: str) -> bytes:
    return COOKIE + hashlib.sha256(proof.encode()).hexdigest()[:16].encode()


def _hash(secret: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(secret.encode("latin-1")).digest()).rstrip(b"=").decode()
