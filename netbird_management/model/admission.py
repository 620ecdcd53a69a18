"""Admission: the one place that decides whether a person, and each of their peers, takes part in the account.

Maps, rules, services, sessions, gates and the API read the answer here, so that a person who is blocked, waits for
approval, or was rejected or deleted leaves all of them at once.
"""

from enum import StrEnum

from netbird_management.model.accounts import Peer, User
from netbird_management.model.snapshot import AccountSnapshot


class Refusal(StrEnum):
    """The reason why a person takes no part, as denials on the wire name it."""

    USER_NOT_FOUND = "user_not_found"
    PENDING_APPROVAL = "pending_approval"
    USER_BLOCKED = "user_blocked"


def refusal(user: User | None) -> Refusal | None:
    """The reason why this person takes no part; `None` if they do. `None` as the person is one who was deleted."""
    if user is None:
        return Refusal.USER_NOT_FOUND
    if user.pending_approval:
        return Refusal.PENDING_APPROVAL
    return Refusal.USER_BLOCKED if user.blocked else None


def peer_refusal(peer: Peer, account: AccountSnapshot) -> Refusal | None:
    """The reason why the peer's owner takes no part. A peer without an owner stands for itself."""
    return None if peer.user_id is None else refusal(account.users.get(peer.user_id))


def admitted(peer: Peer, account: AccountSnapshot) -> bool:
    """Whether the peer is in maps and rules, and may use services."""
    return peer_refusal(peer, account) is None
