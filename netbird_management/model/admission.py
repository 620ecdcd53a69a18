"""Admission: decides whether a user, and each of the user's peers, may take part in the account.

Maps, rules, services, sessions, gates and the API all ask this module. A user who is blocked, waits for approval, or
was rejected or deleted therefore leaves all of them at the same time.
"""

from enum import StrEnum

from netbird_management.model.accounts import Peer, User
from netbird_management.model.snapshot import AccountSnapshot


class Refusal(StrEnum):
    """The reason why a user is not admitted, in the words of denials on the wire."""

    USER_NOT_FOUND = "user_not_found"
    PENDING_APPROVAL = "pending_approval"
    USER_BLOCKED = "user_blocked"


def refusal(user: User | None) -> Refusal | None:
    """The reason why this user is not admitted; `None` if the user is admitted. Pass `None` for a deleted user."""
    if user is None:
        return Refusal.USER_NOT_FOUND
    if user.pending_approval:
        return Refusal.PENDING_APPROVAL
    return Refusal.USER_BLOCKED if user.blocked else None


def peer_refusal(peer: Peer, account: AccountSnapshot) -> Refusal | None:
    """The reason why the peer's owner is not admitted. A peer without an owner is always admitted."""
    return None if peer.user_id is None else refusal(account.users.get(peer.user_id))


def admitted(peer: Peer, account: AccountSnapshot) -> bool:
    """True if the peer appears in maps and rules and may use services."""
    return peer_refusal(peer, account) is None
