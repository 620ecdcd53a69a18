"""Settings for plugins on the wire: what is written is read, with its whole numbers whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_wire.plugin_settings import CORE, read_settings, write_settings
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

LEAF = st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.text(max_size=8)
VALUES = st.dictionaries(
    st.text(min_size=1, max_size=8), st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
)


@given(VALUES)
def test_what_is_written_is_read(values: dict[str, Any]) -> None:
    """Through the bytes, on a service and on a target."""
    for kind in (ProxyMapping, PathMapping):
        message = kind()
        write_settings(message, "shop", values)

        assert read_settings(kind.FromString(message.SerializeToString()), "shop") == values


def test_reading_leaves_no_trace() -> None:
    """A mapping that is only looked at stays as it was: its digest must not change."""
    message = ProxyMapping()

    assert read_settings(message, CORE) == {}
    assert message == ProxyMapping()


def test_writing_replaces() -> None:
    """What stood there before is gone."""
    message = ProxyMapping()
    write_settings(message, "shop", {"a": 1, "b": {"c": [1.5, 2]}})
    write_settings(message, "shop", {"b": {"c": [1.5, 2]}})

    assert read_settings(message, "shop") == {"b": {"c": [1.5, 2]}}
    assert isinstance(read_settings(message, "shop")["b"]["c"][1], int)


def test_what_a_struct_cannot_carry_is_refused() -> None:
    """Whoever writes it learns at once."""
    with pytest.raises(ValueError, match="Unexpected type"):
        write_settings(ProxyMapping(), "shop", {"when": object()})
