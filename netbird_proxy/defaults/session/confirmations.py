"""Single sign-on sessions are asked about again: who they belong to may have been blocked, or may have left a group."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from netbird_proxy import Deny, Group, LatestTable, ManagementError, Proxy, SingleFlight, retry_after
from netbird_proxy.defaults.session.site import Site
from netbird_proxy.defaults.session.tokens import SessionToken
from netbird_wire.proxy_service_pb2 import ValidateSessionRequest, ValidateSessionResponse

REMEMBERED = 8192
ATTEMPTS = 3
"""Questions for one exchange when the account keeps changing under it; then it is refused for now."""
PAUSE = 5.0
"""Seconds for which an older answer stands before a management that was away is asked again: a question may hang."""
PEOPLE = {
    "user_not_found": "user_unknown",
    "account_mismatch": "user_unknown",
    "pending_approval": "pending_approval",
    "user_blocked": "user_blocked",
    "not_in_group": "not_in_group",
}
"""Management's reason → code, where it is about the person: logging in again would change nothing."""


class _Confirmation:
    __slots__ = ("answer", "asked_at", "fresh_until", "generation", "groups")

    def __init__(self) -> None:
        self.answer: ValidateSessionResponse | None = None
        self.groups: tuple[ValidateSessionResponse, tuple[Group, ...]] | None = None  # of a valid answer
        self.asked_at = self.fresh_until = 0.0
        self.generation = -1


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
        self._confirmations: LatestTable[bytes, _Confirmation] = LatestTable(REMEMBERED)
        self._flights: SingleFlight[tuple[bytes, int], ValidateSessionResponse | Deny] = SingleFlight()

    async def groups(
        self, site: Site, proxy: Proxy, token: bytes, session: SessionToken
    ) -> tuple[Group, ...] | Deny | None:
        """The person's groups as they are now; a refusal; or None where this is no session any more.

        The same object for as long as the same answer holds.
        """
        confirmation = self._confirmations.get(session.hash)
        if confirmation is None:
            confirmation = _Confirmation()
            self._confirmations.keep(session.hash, confirmation)
        for _ in range(ATTEMPTS):
            generation = proxy.generation(site.account)
            answer: ValidateSessionResponse | Deny | None = confirmation.answer
            if answer is None or confirmation.generation != generation or self._clock() >= confirmation.fresh_until:
                ask = partial(self._ask, confirmation, site, proxy, token, generation)
                answer = await self._flights.ask((session.hash, generation), ask)
            if isinstance(answer, Deny):
                return answer
            if proxy.generation(site.account) == generation:
                break
        else:  # what was said before a change serves nobody
            return _later(f"the account changed during {ATTEMPTS} questions", 1)
        if confirmation.groups is not None and confirmation.groups[0] is answer:
            return confirmation.groups[1]
        if not answer.valid:
            reason = answer.denied_reason
            # A no that names somebody is about them: whatever a plugin of management calls it, logging in again would
            # change nothing.
            code = PEOPLE.get(reason) or ("not_allowed" if answer.user_id else None)
            return None if code is None else Deny(403, code, f"management says {reason}")
        names = list(answer.peer_group_names)
        groups = tuple(
            Group(id_, names[i] if i < len(names) else "") for i, id_ in enumerate(answer.peer_group_ids) if id_
        )
        confirmation.groups = (answer, groups)
        return groups

    async def _ask(
        self, confirmation: _Confirmation, site: Site, proxy: Proxy, token: bytes, generation: int
    ) -> ValidateSessionResponse | Deny:
        asked_at = self._clock()
        request = ValidateSessionRequest(domain=site.domain, session_token=token.decode("ascii"))
        try:
            answer = await proxy.management.call("ValidateSession", request)
            if not isinstance(answer, ValidateSessionResponse):
                raise ManagementError("ValidateSession: not an answer")
        except ManagementError as error:
            if (
                confirmation.answer is None
                or confirmation.generation != generation
                or asked_at - confirmation.asked_at >= self._stale
            ):
                return _later(str(error), error.retry_after)
            confirmation.fresh_until = self._clock() + min(PAUSE, self._fresh)
            return confirmation.answer
        confirmation.answer, confirmation.asked_at, confirmation.generation = answer, asked_at, generation
        confirmation.fresh_until = asked_at + self._fresh
        return answer


def _later(reason: str, seconds: float) -> Deny:
    return Deny(503, "management_unavailable", reason, headers=(retry_after(seconds),))
