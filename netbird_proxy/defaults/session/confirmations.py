"""Single sign-on sessions are asked about again: who they belong to may have been blocked, or may have left a group."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from netbird_proxy import Deny, Group, ManagementError, Proxy
from netbird_proxy.defaults.session.site import Site
from netbird_proxy.defaults.session.tokens import SessionToken
from netbird_wire.proxy_service_pb2 import ValidateSessionRequest, ValidateSessionResponse

REMEMBERED = 8192
PEOPLE = {
    "user_not_found": "user_unknown",
    "account_mismatch": "user_unknown",
    "pending_approval": "pending_approval",
    "user_blocked": "user_blocked",
    "not_in_group": "not_in_group",
}
"""Management's reason → code, where it is about the person: logging in again would change nothing."""


class _Known:
    __slots__ = ("answer", "asked_at", "asking", "generation")

    def __init__(self) -> None:
        self.answer: ValidateSessionResponse | None = None
        self.asked_at = 0.0
        self.generation = -1
        self.asking = asyncio.Lock()


class Confirmations:
    """Management's last word on each session.

    Args:
        fresh: seconds for which it needs no other.
        stale: seconds for which it stands where management cannot be asked.
    """

    def __init__(self, clock: Callable[[], float], *, fresh: float, stale: float) -> None:
        self._clock = clock
        self._fresh = fresh
        self._stale = stale
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    async def groups(
        self, site: Site, proxy: Proxy, token: bytes, session: SessionToken
    ) -> tuple[Group, ...] | Deny | None:
        """The person's groups as they are now; a refusal; or None where this is no session any more."""
        known = self._known.get(session.hash)
        if known is None:
            known = self._known[session.hash] = _Known()
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        generation = proxy.generation(site.account)
        if not self._is_fresh(known, generation):
            async with known.asking:
                # Somebody may have asked while we waited for our turn.
                generation = proxy.generation(site.account)
                if not self._is_fresh(known, generation) and (trouble := await self._ask(known, site, proxy, token)):
                    return trouble
        answer = known.answer
        if answer is None or not answer.valid:
            reason = answer.denied_reason if answer is not None else ""
            code = PEOPLE.get(reason)
            return None if code is None else Deny(403, code, f"management says {reason}")
        names = list(answer.peer_group_names)
        return tuple(
            Group(id_, names[i] if i < len(names) else "") for i, id_ in enumerate(answer.peer_group_ids) if id_
        )

    def _is_fresh(self, known: _Known, generation: int) -> bool:
        return (
            known.answer is not None and known.generation == generation and self._clock() - known.asked_at < self._fresh
        )

    async def _ask(self, known: _Known, site: Site, proxy: Proxy, token: bytes) -> Deny | None:
        generation, asked_at = proxy.generation(site.account), self._clock()
        request = ValidateSessionRequest(domain=site.domain, session_token=token.decode("ascii"))
        try:
            answer = await proxy.management.call("ValidateSession", request)
            if not isinstance(answer, ValidateSessionResponse):
                raise ManagementError("ValidateSession: not an answer")
        except ManagementError as error:
            stands = known.answer is not None and known.generation == generation
            if stands and asked_at - known.asked_at < self._stale:
                return None
            retry = (b"retry-after", b"%d" % max(1, round(error.retry_after)))
            return Deny(503, "management_unavailable", str(error), headers=(retry,))
        known.answer, known.asked_at, known.generation = answer, asked_at, generation
        return None
