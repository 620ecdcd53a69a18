"""The gRPC status of every error."""

import logging
from typing import Final

import grpc

from netbird_management.model.errors import (
    BadRequest,
    Conflict,
    InvalidArgument,
    ManagementError,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    Unauthorized,
)
from netbird_management.model.store_errors import UnreachableError

_log = logging.getLogger(__name__)

_CODES: Final[dict[type[ManagementError], grpc.StatusCode]] = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthorized: grpc.StatusCode.PERMISSION_DENIED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    PreconditionFailed: grpc.StatusCode.FAILED_PRECONDITION,
}


class Refused(Exception):
    """Ends the call with this status. The message goes to the caller, so it contains no secret."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def as_refusal(error: Exception, method: str) -> Refused:
    """The status for any exception of a call. An unexpected exception is logged, and its status has a fixed message."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, NotImplementedError):
        return Refused(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not supported")
    code = _CODES.get(type(error)) if isinstance(error, ManagementError) else None
    if code is not None:
        return Refused(code, str(error))
    if isinstance(error, UnreachableError):
        _log.error("grpc.store_away", exc_info=error, extra={"method": method})
        return Refused(grpc.StatusCode.UNAVAILABLE, "the store is unavailable: try again later")
    _log.error("grpc.call.failed", exc_info=error, extra={"method": method})
    return Refused(grpc.StatusCode.INTERNAL, "internal error")
