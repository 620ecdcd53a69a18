"""The captured messages, and what a test asks of any message."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from netbird_wire import management_pb2, proxy_service_pb2, signalexchange_pb2

DIRECTORY = Path(__file__).parents[2] / "corpus" / "golden"
FILES = (management_pb2.DESCRIPTOR, proxy_service_pb2.DESCRIPTOR, signalexchange_pb2.DESCRIPTOR)


@dataclass(frozen=True)
class Golden:
    """One captured message; `kind` and `line` name it in a test's id."""

    line: int
    kind: str
    type: str
    data: bytes
    json: dict[str, Any]
    outer: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.line}-{self.kind}{'-inner' if self.outer else ''}"


def lines() -> list[dict[str, Any]]:
    text = (DIRECTORY / "wire.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def goldens() -> Iterator[Golden]:
    """Every captured message, the encrypted ones' insides too."""
    for number, line in enumerate(lines(), start=1):
        yield Golden(number, line["kind"], line["type"], base64.b64decode(line["base64"]), line["message"])
        if "inner" in line:
            data = base64.b64decode(line["inner_base64"])
            yield Golden(number, line["kind"], line["inner_type"], data, line["inner"], outer=line)


def keys() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads((DIRECTORY / "keys.json").read_text())
    return found


def message_class(full_name: str) -> type[Message]:
    pool = descriptor_pool.Default()
    found: type[Message] = message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name))
    return found


def all_types() -> list[Descriptor]:
    """Every message type of ours, nested ones too, the ones that stand for map entries not."""

    def nested(kind: Descriptor) -> Iterator[Descriptor]:
        if not kind.GetOptions().map_entry:
            yield kind
        for inner in kind.nested_types:
            yield from nested(inner)

    return [found for file in FILES for kind in file.message_types_by_name.values() for found in nested(kind)]


def children(field: FieldDescriptor, value: Any) -> list[Message]:
    if field.message_type is None:
        return []
    if field.message_type.GetOptions().map_entry:
        return [item for item in value.values() if isinstance(item, Message)]
    return list(value) if field.is_repeated else [value]


def unknown_fields(message: Message) -> list[str]:
    """Where in a message something stands that our files do not declare."""
    unknown = UnknownFieldSet(message)
    found = [f"{message.DESCRIPTOR.full_name}:{unknown[i].field_number}" for i in range(len(unknown))]
    for field, value in message.ListFields():
        for child in children(field, value):
            found += unknown_fields(child)
    return found
