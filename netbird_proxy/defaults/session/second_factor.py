"""Both, where a service asks for both: the device by its tunnel, and a login by whoever sits at it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from netbird_proxy import ALLOW, Challenge, Deny, ExchangeView, Identity, Offer, Verdict

Identify = Callable[[ExchangeView], Awaitable[Identity | Deny | None]]
Asked = Callable[[ExchangeView], Awaitable[tuple[Offer, ...] | Deny | Challenge]]


class SecondFactor:
    """Judges callers whom somebody else named already; the exchange keeps that identity."""

    def __init__(self, identify: Sequence[Identify], ask: Asked) -> None:
        self._identify = tuple(identify)
        self._ask = ask

    async def judge(self, exchange: ExchangeView, who: Identity) -> Verdict:
        """ALLOW with a session or a credential; the ways to log in without one; 403 for another person's session."""
        for identify in self._identify:
            identity = await identify(exchange)
            if isinstance(identity, Deny):
                return identity
            if identity is not None and identity.method == "oidc" and identity.user_id != who.user_id:
                return Deny(403, "other_person", f"{identity.user_id} is logged in, on the device of {who.user_id}")
            if identity is not None:
                return ALLOW
        offered = await self._ask(exchange)
        if not isinstance(offered, tuple):
            return offered
        return Challenge(401, "login_required", offers=offered, reason="the tunnel is known, and a login is asked too")
