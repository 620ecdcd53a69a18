"""NetBird's `middlewares` of a target, which use the field number that we declare as a bool.

NetBird has `repeated MiddlewareConfig middlewares = 11` where the description of `direct_upstream` has a bool. With
the bool declared, the length-delimited messages arrive as unknown fields; this module reads them from there. They
matter because a middleware may be the guard that stops a request.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from netbird_wire.proxy_service_pb2 import MIDDLEWARE_SLOT_ON_RESPONSE, MiddlewareConfig, PathTargetOptions

NUMBER: Final = 11
_LENGTH_DELIMITED: Final = 2


class BadMiddlewares(Exception):
    """Field 11 holds neither a bool nor middlewares, so its effect on requests is unknown."""


def middlewares_of(options: PathTargetOptions) -> list[MiddlewareConfig]:
    """The target's middlewares, in their order. Raises BadMiddlewares."""
    middlewares = []
    unknown = UnknownFieldSet(options)
    for position in range(len(unknown)):
        field = unknown[position]
        if field.field_number != NUMBER:
            continue
        if field.wire_type != _LENGTH_DELIMITED:
            raise BadMiddlewares(f"field {NUMBER} of a target's options has the wire type {field.wire_type}")
        try:
            middlewares.append(MiddlewareConfig.FromString(field.data))
        except DecodeError:
            raise BadMiddlewares(f"field {NUMBER} of a target's options does not hold a middleware") from None
    return middlewares


def guards(middleware: MiddlewareConfig) -> bool:
    """True if a request could pass without this middleware that the middleware would have stopped.

    A middleware is harmless only if it fails open and is disabled or handles responses only. Unknown slots and fail
    modes count as guarding.
    """
    fails_open: bool = middleware.fail_mode == MiddlewareConfig.FAIL_OPEN
    on_requests: bool = middleware.enabled and middleware.slot != MIDDLEWARE_SLOT_ON_RESPONSE
    return on_requests or not fails_open
