"""Serialization of mappings: the bytes that all proxies share are built once, and each proxy's own fields are appended.

The fields of a protobuf message may have any order, so a serialized mapping followed by two serialized fields is a
mapping with these fields.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

from netbird_wire.proxy_service_pb2 import (
    GetMappingUpdateResponse,
    ProxyMapping,
    ProxyMappingUpdateType,
    SyncMappingsResponse,
)
from netbird_wire.varint import varint

MESSAGE_BYTES: Final = 2 << 20
"""Maximum size of the mappings or revocations in a message: NetBird's proxies accept messages of 4 MiB, one-time tokens
included, and a shared proxy must receive its snapshot whatever size one account's mappings have."""
P = TypeVar("P")

_LENGTH_DELIMITED: Final = 2
_FIELDS: Final = ProxyMapping.DESCRIPTOR.fields_by_name


def _tag(number: int, kind: int) -> bytes:
    return varint(number << 3 | kind)


_MAPPING: Final = _tag(SyncMappingsResponse.DESCRIPTOR.fields_by_name["mapping"].number, _LENGTH_DELIMITED)
_TYPE: Final = _tag(_FIELDS["type"].number, 0)
_AUTH_TOKEN: Final = _tag(_FIELDS["auth_token"].number, _LENGTH_DELIMITED)

# The messages of both kinds of streams must have the same encoding.
assert [(f.number, f.name) for f in SyncMappingsResponse.DESCRIPTOR.fields] == [  # noqa: S101
    (f.number, f.name) for f in GetMappingUpdateResponse.DESCRIPTOR.fields
]


def mapping_entry(shared: bytes, kind: "ProxyMappingUpdateType.ValueType", auth_token: str = "") -> bytes:
    """A message's entry for a mapping; `shared` is a serialized `ProxyMapping` without type and token."""
    token = auth_token.encode()
    parts = [shared]
    if kind:
        parts += (_TYPE, varint(kind))
    if token:
        parts += (_AUTH_TOKEN, varint(len(token)), token)
    body = b"".join(parts)
    return b"".join((_MAPPING, varint(len(body)), body))


def message(entries: Iterable[bytes], **more: Any) -> bytes:
    """A message from serialized mappings and its other fields."""
    return b"".join(entries) + (SyncMappingsResponse(**more).SerializeToString() if more else b"")


def batches(parts: Iterable[P], size: Callable[[P], int], *, most: int) -> Iterator[list[P]]:
    """The parts in order, in batches of at most `most` parts and `MESSAGE_BYTES` bytes.

    A part larger than `MESSAGE_BYTES` is a batch of its own.
    """
    batch: list[P] = []
    total = 0
    for part in parts:
        bytes_ = size(part)
        if batch and (len(batch) >= most or total + bytes_ > MESSAGE_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(part)
        total += bytes_
    if batch:
        yield batch


def serialized(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """A serializer that passes bytes through."""

    def write(response: Any) -> bytes:
        return response if isinstance(response, bytes) else serialize(response)

    return write
