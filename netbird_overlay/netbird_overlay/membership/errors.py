"""Failures of calls to management.

ManagementFailure        retryable or not
├── NotRegistered        management does not know our key (any more)
└── LoginExpired         management knows it, and wants its user to log in again
"""

from __future__ import annotations

from netbird_overlay.errors import OverlayError

RETRYABLE = frozenset(
    ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "RESOURCE_EXHAUSTED", "ABORTED", "UNKNOWN")
)
"""Codes after which the same call may succeed later without any change on our side."""


class ManagementFailure(OverlayError):
    """A call to management failed.

    Attributes:
        code: the name of the gRPC status, or `MALFORMED` for an answer that cannot be read.
        retryable: True if the same call may succeed later.
    """

    def __init__(self, message: str, *, code: str = "MALFORMED", retryable: bool | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = code in RETRYABLE if retryable is None else retryable


class NotRegistered(ManagementFailure):
    """Management does not know our key (any more): a new registration helps, a retry does not."""


class LoginExpired(ManagementFailure):
    """The peer's login has expired: its user must log in again."""


class AddressesChanged(OverlayError):
    """Management assigned us another overlay address or MTU: the node must be made anew."""


def failure(call: str, code: str, details: str | None, *, member: bool = True) -> ManagementFailure:
    """Return the error for a failed call.

    Args:
        member: False for a call that needs no registration, such as a login with a setup key: a refusal is then about
            something else than our key.
    """
    message = f"{call}: {code}: {details}"
    if code == "PERMISSION_DENIED" and "expired" in (details or "").lower() and member:
        return LoginExpired(message, code=code)
    if code in ("PERMISSION_DENIED", "NOT_FOUND") and member:
        return NotRegistered(message, code=code)
    return ManagementFailure(message, code=code)
