"""The number 11 of a target's options: a bool of ours, a list of messages of NetBird's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_wire.direct_upstream import is_direct, set_direct
from netbird_wire.middlewares import BadMiddlewares, guards, middlewares_of
from netbird_wire.proxy_service_pb2 import (
    MIDDLEWARE_SLOT_ON_REQUEST,
    MIDDLEWARE_SLOT_ON_RESPONSE,
    MIDDLEWARE_SLOT_TERMINAL,
    MIDDLEWARE_SLOT_UNSPECIFIED,
    MiddlewareConfig,
    PathMapping,
    PathTargetOptions,
)

FIELD_7, FIELD_11 = b"\x38\x01", b"\x58\x01"


def on_the_wire(*middlewares: MiddlewareConfig) -> bytes:
    """Field 11 as NetBird writes it."""
    data = b""
    for middleware in middlewares:
        inner = middleware.SerializeToString()
        assert len(inner) < 128
        data += bytes([11 << 3 | 2, len(inner)]) + inner
    return data


GEO = MiddlewareConfig(id="geo", enabled=True, slot=MIDDLEWARE_SLOT_ON_REQUEST, config_json=b"{}")
LOG = MiddlewareConfig(id="log", enabled=True, slot=MIDDLEWARE_SLOT_ON_RESPONSE)


def test_direct_is_written_under_both_numbers() -> None:
    """Whoever reads 7 and whoever reads 11 understands us; false is written under neither."""
    options = PathTargetOptions()
    set_direct(options, True)
    assert options.SerializeToString() == FIELD_7 + FIELD_11
    set_direct(options, False)
    assert options.SerializeToString() == b""


@pytest.mark.parametrize(
    ("data", "direct"),
    [(FIELD_7, True), (FIELD_11, True), (FIELD_7 + FIELD_11, True), (b"", False), (b"\x38\x00", False)],
)
def test_direct_is_honored_under_either_number(data: bytes, direct: bool) -> None:
    """One of the two is enough."""
    assert is_direct(PathTargetOptions.FromString(data)) is direct


def test_middlewares_do_not_make_a_target_direct() -> None:
    """NetBird's list on number 11 is no consent to leave the tunnel."""
    assert not is_direct(PathTargetOptions.FromString(on_the_wire(GEO)))


def test_middlewares_are_found_in_order() -> None:
    """What NetBird wrote is read back, inside a path mapping as well, and written again unchanged."""
    data = FIELD_7 + on_the_wire(GEO, LOG)
    mapping = PathMapping.FromString(PathMapping(options=PathTargetOptions.FromString(data)).SerializeToString())
    assert middlewares_of(mapping.options) == [GEO, LOG]
    assert is_direct(mapping.options)
    assert mapping.options.SerializeToString() == data


def test_without_middlewares_there_are_none() -> None:
    """Neither our own bool nor other unknown fields are taken for middlewares."""
    other_unknown = bytes([0xA2, 0x06, 0x02]) + b"hi"
    assert middlewares_of(PathTargetOptions.FromString(FIELD_11 + other_unknown)) == []
    assert middlewares_of(PathTargetOptions()) == []


@pytest.mark.parametrize(
    "data", [bytes([11 << 3 | 2, 1]) + b"\xff", bytes([11 << 3 | 1]) + bytes(8), bytes([11 << 3 | 5]) + bytes(4)]
)
def test_nonsense_on_the_number_is_an_error(data: bytes) -> None:
    """What cannot be read may have been a guard: the caller hears of it."""
    with pytest.raises(BadMiddlewares):
        middlewares_of(PathTargetOptions.FromString(data))


@given(st.binary(max_size=100))
def test_any_bytes_give_middlewares_or_the_error(inner: bytes) -> None:
    """Reading never raises anything else."""
    options = PathTargetOptions.FromString(bytes([11 << 3 | 2, len(inner)]) + inner)
    try:
        found = middlewares_of(options)
    except BadMiddlewares:
        return
    assert len(found) == 1


@pytest.mark.parametrize(
    ("middleware", "does"),
    [
        (GEO, True),
        (LOG, False),
        (MiddlewareConfig(enabled=False, slot=MIDDLEWARE_SLOT_ON_REQUEST), False),
        (MiddlewareConfig(enabled=True, slot=MIDDLEWARE_SLOT_TERMINAL), True),
        (MiddlewareConfig(enabled=True, slot=MIDDLEWARE_SLOT_UNSPECIFIED), True),
        (MiddlewareConfig(enabled=True, slot=99), True),  # type: ignore[arg-type]
        (MiddlewareConfig(slot=MIDDLEWARE_SLOT_ON_RESPONSE, fail_mode=MiddlewareConfig.FAIL_CLOSED), True),
        (MiddlewareConfig(slot=MIDDLEWARE_SLOT_ON_RESPONSE, fail_mode=99), True),  # type: ignore[arg-type]
        (MiddlewareConfig(), False),
    ],
)
def test_which_middlewares_guard(middleware: MiddlewareConfig, does: bool) -> None:
    """Enabled for requests, or failing closed; what we do not know counts as guarding."""
    assert guards(middleware) is does
