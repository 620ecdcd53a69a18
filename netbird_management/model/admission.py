"""Admission: decides whether a user, and each of the user's peers, may take part in the account.

Maps, rules, services, sessions, gates and the API all ask this module. A user who is blocked, waits for approval, or
was rejected or deleted therefore leaves all of them at the same time.
"""

from datetime import datetime, timedelta
from enum import StrEnum

from netbird_management.model.accounts import Account, Peer, User
from netbird_management.model.snapshot import AccountSnapshot


class Refusal(StrEnum):
    """The reason why a user is not admitted, in the words of denials on the wire."""

    USER_NOT_FOUND = "user_not_found"
    PENDING_APPROVAL = "pending_approval"
    USER_BLOCKED = "user_blocked"
    LOGIN_EXPIRED = "login_expired"


def refusal(user: User | None) -> Refusal | None:
    """The reason why this user is not admitted; `None` if the user is admitted. Pass `None` for a deleted user."""
    if user is None:
        return Refusal.USER_NOT_FOUND
    if user.pending_approval:
        return Refusal.PENDING_APPROVAL
    return Refusal.USER_BLOCKED if user.blocked else None


def owner_refusal(peer: Peer, account: AccountSnapshot) -> Refusal | None:
    """The reason why the peer's owner is not admitted. A peer without an owner is always admitted."""
    return None if peer.user_id is None else refusal(account.users.get(peer.user_id))


def peer_refusal(peer: Peer, account: AccountSnapshot) -> Refusal | None:
    """The reason why the peer is not admitted: its owner is not, or its login has expired."""
    reason = owner_refusal(peer, account)
    return Refusal.LOGIN_EXPIRED if reason is None and has_expired_login(peer, account.account) else reason


def has_expired_login(peer: Peer, account: Account) -> bool:
    """True if the account's settings let the peer's login expire, and it has."""
    return peer.login_expired and _expires(peer, account)


def login_expires_at(peer: Peer, account: Account) -> datetime | None:
    """The time at which the peer's user must log in again; `None` for never."""
    if not _expires(peer, account):
        return None
    try:
        return (peer.last_login or peer.created_at) + timedelta(seconds=account.settings.peer_login_expiration)
    except OverflowError:
        return None


def _expires(peer: Peer, account: Account) -> bool:
    return account.settings.peer_login_expiration_enabled and peer.login_expiration_enabled and peer.by_login


def admitted(peer: Peer, account: AccountSnapshot) -> bool:
    """True if the peer appears in maps and rules and may use services."""
    return peer_refusal(peer, account) is None
