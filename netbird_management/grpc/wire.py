"""Mappings as bytes: what is the same for every proxy is put together once, and each proxy's own is appended.

Fields of a protobuf message may stand in any order, and a message may be joined of parts, so a serialized mapping
followed by two more fields is a mapping with these fields.
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
"""At most so many bytes of mappings or revocations in one message: NetBird's proxies take 4 MiB, one-time tokens
included, and an account must not keep others' mappings from a proxy that both share."""
P = TypeVar("P")

_LENGTH_DELIMITED: Final = 2
_FIELDS: Final = ProxyMapping.DESCRIPTOR.fields_by_name


def _tag(number: int, kind: int) -> bytes:
    return varint(number << 3 | kind)


_MAPPING: Final = _tag(SyncMappingsResponse.DESCRIPTOR.fields_by_name["mapping"].number, _LENGTH_DELIMITED)
_TYPE: Final = _tag(_FIELDS["type"].number, 0)
_AUTH_TOKEN: Final = _tag(_FIELDS["auth_token"].number, _LENGTH_DELIMITED)

# Both streams send the same bytes.
assert [(f.number, f.name) for f in SyncMappingsResponse.DESCRIPTOR.fields] == [  # noqa: S101
    (f.number, f.name) for f in GetMappingUpdateResponse.DESCRIPTOR.fields
]


def mapping_entry(shared: bytes, kind: "ProxyMappingUpdateType.ValueType", auth_token: str = "") -> bytes:
    """One mapping of a message, from a serialized `ProxyMapping` without type and token."""
    token = auth_token.encode()
    parts = [shared]
    if kind:
        parts += (_TYPE, varint(kind))
    if token:
        parts += (_AUTH_TOKEN, varint(len(token)), token)
    body = b"".join(parts)
    return b"".join((_MAPPING, varint(len(body)), body))


def message(entries: Iterable[bytes], **more: Any) -> bytes:
    """A whole message: mappings, and whatever other fields it has."""
    return b"".join(entries) + (SyncMappingsResponse(**more).SerializeToString() if more else b"")


def batches(parts: Iterable[P], size: Callable[[P], int], *, most: int) -> Iterator[list[P]]:
    """The parts in order, each batch with at most `most` of them and at most `MESSAGE_BYTES` in all.

    A part that is larger than `MESSAGE_BYTES` alone is a batch of its own.
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
    """A serializer that leaves alone what is bytes already."""

    def write(sent: Any) -> bytes:
        return sent if isinstance(sent, bytes) else serialize(sent)

    return write
