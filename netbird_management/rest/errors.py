"""Error responses: `{"message": …, "code": …}`, with a fixed message for an internal error."""

import logging
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from netbird_management.model.errors import Internal, ManagementError
from netbird_management.model.store_errors import UnreachableError
from netbird_management.rest import shapes
from netbird_management.rest.requests import request_id
from netbird_management.rest.wire import ApiResponse

REFUSED: Final[dict[int | str, dict[str, Any]]] = {"4XX": {"description": "Refused", "model": shapes.Error}}
"""The error response that every operation may give, as FastAPI's `responses` parameter."""
_log = logging.getLogger(__name__)


def error_response(status: int, message: str) -> Response:
    return ApiResponse({"message": message, "code": status}, status_code=status, in_order=True)


def install(app: FastAPI) -> None:
    """Registers a handler for every kind of error."""

    @app.exception_handler(ManagementError)
    async def refused(request: Request, error: ManagementError) -> Response:
        if isinstance(error, Internal):
            return failed(request, error)
        return error_response(error.status, error.message[:1].lower() + error.message[1:])

    @app.exception_handler(RequestValidationError)
    async def unreadable(_request: Request, _error: RequestValidationError) -> Response:
        return error_response(400, "the request's parameters are malformed")

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, str(error.detail).lower())

    @app.exception_handler(UnreachableError)
    async def away(request: Request, error: UnreachableError) -> Response:
        _log.error("rest.store_away", extra={"request_id": request_id(request)}, exc_info=error)
        return error_response(503, "the store is unavailable: try again later")

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return failed(request, error)


def failed(request: Request, error: Exception) -> Response:
    _log.error("rest.failed", extra={"request_id": request_id(request)}, exc_info=error)
    return error_response(500, "internal server error")
