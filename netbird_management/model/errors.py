"""What goes wrong towards a caller.

ManagementError
├── InvalidArgument      422   a value breaks a rule
├── BadRequest           400   the request cannot be read
├── Unauthorized         401   no credential, or a bad one
├── PermissionDenied     403   known, but may not
├── NotFound             404
├── Conflict             409   taken by another, or not ready for this
├── PreconditionFailed   412   something else must be done first
└── Internal             500   ours; the caller gets a fixed sentence
"""

from typing import ClassVar


class ManagementError(Exception):
    """A refusal with a sentence for the caller. The sentence never holds a secret."""

    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidArgument(ManagementError):
    status = 422


class BadRequest(ManagementError):
    status = 400


class Unauthorized(ManagementError):
    status = 401


class PermissionDenied(ManagementError):
    status = 403


class NotFound(ManagementError):
    status = 404


class Conflict(ManagementError):
    status = 409


class PreconditionFailed(ManagementError):
    status = 412


class Internal(ManagementError):
    """Raised for what the caller can do nothing about; its message is for the log alone."""

    status = 500
