"""Errors that management reports to a client, with the HTTP status of each.

ManagementError
├── InvalidArgument      422   a value breaks a rule
├── BadRequest           400   the request cannot be read
├── Unauthorized         401   no credential, or a bad one
├── PermissionDenied     403   the client is authenticated but not permitted
├── NotFound             404
├── Conflict             409   the name is in use, or the object is in the wrong state
├── PreconditionFailed   412   the client must change something else first
└── Internal             500   a fault of management; the client gets a fixed sentence
"""

from typing import ClassVar


class ManagementError(Exception):
    """A refusal with a sentence for the client. The sentence never contains a secret."""

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
    """A failure that the client cannot mend. Its message is logged and never sent."""

    status = 500
