"""What is revoked stays so for as long as any token lives, also when there are more than fit."""

from __future__ import annotations

from hashlib import sha256

from netbird_proxy.accounts.revocations import KEPT, RevokedSessions
from netbird_proxy.api.model import AccountId

ACME, OTHER = AccountId("acme"), AccountId("other")
TOKEN = sha256(b"a token").digest()


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def revoked(
    sessions: RevokedSessions, subject: str, issued_at: float, *, account: AccountId = ACME, token: bytes = b"?"
) -> bool:
    return sessions.revoked(account, subject=subject, token_hash=token, issued_at=issued_at)


def test_promise_8_a_subjects_earlier_tokens_are_refused() -> None:
    """Tokens of this subject in this account from before the moment; nobody else's, and none issued later."""
    sessions = RevokedSessions(clock=Clock())
    sessions.add(ACME, subject="bob", not_before=500.0)

    assert revoked(sessions, "bob", 499)
    assert not revoked(sessions, "bob", 500)
    assert not revoked(sessions, "alice", 499)
    assert not revoked(sessions, "bob", 499, account=OTHER)


def test_promise_8_one_token_is_refused_by_its_hash() -> None:
    """Whenever it was issued, whoever's it is; the same person's other tokens go on."""
    sessions = RevokedSessions(clock=Clock())
    sessions.add(ACME, token_hash=TOKEN, not_before=500.0)

    assert revoked(sessions, "bob", 900, token=TOKEN)
    assert not revoked(sessions, "bob", 100)


def test_told_again_the_later_moment_counts() -> None:
    """A snapshot repeats older ones: what was refused stays refused."""
    sessions = RevokedSessions(clock=Clock())
    for moment in (500.0, 700.0, 600.0):
        sessions.add(ACME, subject="bob", not_before=moment)

    assert revoked(sessions, "bob", 699)
    assert not revoked(sessions, "bob", 700)
    assert len(sessions) == 1


def test_they_are_forgotten_when_no_token_can_be_left() -> None:
    """A day and the clocks' difference later there is nothing to remember."""
    clock = Clock()
    sessions = RevokedSessions(clock=clock)
    sessions.add(ACME, subject="bob", not_before=500.0)
    clock.now += KEPT - 1
    assert revoked(sessions, "bob", 499)
    clock.now += 1
    sessions.add(ACME, subject="carol", not_before=500.0)

    assert not revoked(sessions, "bob", 499)
    assert len(sessions) == 1


def test_past_the_limit_more_is_refused_never_less() -> None:
    """What does not fit becomes a floor of its account, and of all accounts where even those do not fit."""
    counted: list[str] = []
    sessions = RevokedSessions(clock=Clock(), limit=2, count=counted.append)
    for number in range(100):
        sessions.add(AccountId(f"account-{number}"), subject="bob", not_before=500.0 + number)

    assert all(revoked(sessions, "bob", 499 + number, account=AccountId(f"account-{number}")) for number in range(100))
    assert not revoked(sessions, "bob", 600, account=AccountId("account-99"))
    assert len(sessions) <= 2 + 2
    assert counted == ["revocations_overflowed"] * 98


def test_one_about_nobody_is_about_everybody() -> None:
    """A newer management may revoke by what we do not know: then all of the account log in again."""
    sessions = RevokedSessions(clock=Clock())
    sessions.add(ACME, not_before=500.0)

    assert revoked(sessions, "anybody", 499)
    assert not revoked(sessions, "anybody", 499, account=OTHER)
