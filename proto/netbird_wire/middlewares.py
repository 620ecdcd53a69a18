"""NetBird's `middlewares` of a target, which stand on the number that we read as a bool.

NetBird has `repeated MiddlewareConfig middlewares = 11` where the description of `direct_upstream` has a bool. With
the bool declared, the messages, which are length-delimited, arrive as unknown fields; here they are found again. They
matter because one of them may be what keeps a request out.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from netbird_wire.proxy_service_pb2 import MIDDLEWARE_SLOT_ON_RESPONSE, MiddlewareConfig, PathTargetOptions

NUMBER: Final = 11
_LENGTH_DELIMITED: Final = 2


class BadMiddlewares(Exception):
    """Field 11 holds neither a bool nor middlewares: nobody can say what it would have guarded."""


def middlewares_of(options: PathTargetOptions) -> list[MiddlewareConfig]:
    """The target's middlewares, in their order. Raises BadMiddlewares."""
    found = []
    unknown = UnknownFieldSet(options)
    for position in range(len(unknown)):
        field = unknown[position]
        if field.field_number != NUMBER:
            continue
        if field.wire_type != _LENGTH_DELIMITED:
            raise BadMiddlewares(f"field {NUMBER} of a target's options has the wire type {field.wire_type}")
        try:
            found.append(MiddlewareConfig.FromString(field.data))
        except DecodeError:
            raise BadMiddlewares(f"field {NUMBER} of a target's options does not hold a middleware") from None
    return found


def guards(middleware: MiddlewareConfig) -> bool:
    """Whether leaving this middleware out could let a request through that it would have stopped.

    Only one that is switched off or looks at responses alone, and fails open, is harmless; slots and fail modes that we
    do not know count as guarding.
    """
    fails_open: bool = middleware.fail_mode == MiddlewareConfig.FAIL_OPEN
    on_requests: bool = middleware.enabled and middleware.slot != MIDDLEWARE_SLOT_ON_RESPONSE
    return on_requests or not fails_open
