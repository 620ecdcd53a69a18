"""Reads mappings from a TOML file: the fields of the wire's `ProxyMapping`, with the line of each problem.

Reading is all or nothing: a file with one mistake is refused as a whole, so that no half of an edit is applied. Fields
that only management can be trusted with (people, logins, tunnels) are refused in a file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from netbird_wire.go_duration import parse_nanoseconds
from netbird_wire.proxy_service_pb2 import ProxyMapping

Where = tuple[str | int, ...]
"""A path into the document: `("mapping", 0, "path", 1, "target")`."""

MAX_BYTES: Final = 16 << 20
SECTION: Final = "mapping"
_REFUSED: Final = {
    "type": "belongs to the mapping stream",
    "auth_token": "belongs to the mapping stream",
    "account_id": "is management's alone: a file's services have no account and no tunnel",
    "private": "needs peers and groups, which only management knows: a file's services are public",
    "auth": "needs management, which judges logins: a file's services have none",
}
_SPELLINGS: Final = frozenset({"direct_upstream_11"})


class MappingsRefused(Exception):
    """Raised for a file that cannot be used, with one sentence a problem: `FILE:LINE: field: problem`."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class FileMapping:
    """One mapping of the file.

    Attributes:
        wire: the mapping as the codec decodes it; its account is empty.
    """

    wire: ProxyMapping
    document: Document
    index: int

    def problem(self, reason: str, *, path: int | None = None) -> str:
        """Format a refusal of this mapping, with the line of the field that it names, if that can be found.

        Args:
            path: index of the refused path; None if it is not known, or all are refused.
        """
        return self.document.problem((SECTION, self.index, *self._about(reason, path)), reason)

    def part(self, path: int) -> ProxyMapping:
        """The mapping with only one of its paths; a refusal of it is about this path or about no path."""
        part = ProxyMapping()
        part.CopyFrom(self.wire)
        del part.path[:]
        part.path.append(self.wire.path[path])
        return part

    def _about(self, reason: str, path: int | None) -> Where:
        """Find the field that a refusal names, by its plain or dotted name."""
        inside: Where = () if path is None else ("path", path)
        own = [way[2:] for way in self.document.lines if way[:2] == (SECTION, self.index)]
        ways = sorted(
            (way for way in own if len(way) > len(inside) and way[: len(inside)] == inside),
            key=lambda way: (len(way), str(way)),
        )
        for text in re.findall(r"[a-z_]+(?:\.[a-z_]+)*", reason):
            name = tuple(text.split("."))
            for way in ways:
                if tuple(part for part in way if isinstance(part, str))[-len(name) :] == name:
                    return way
        return inside


class Document:
    """The text of one file, with the line of each table and key."""

    def __init__(self, file: Path, text: str) -> None:
        self.file = file
        self.lines = _positions(text)

    def problem(self, way: Where, reason: str) -> str:
        inside = way
        while inside and inside not in self.lines:
            inside = inside[:-1]
        line = f":{self.lines[inside]}" if inside else ""
        shown = _dotted(way)
        return f"{self.file}{line}: {shown}: {reason}" if shown else f"{self.file}{line}: {reason}"


def read_mappings(file: Path, *, edited: bool = False) -> list[FileMapping]:
    """Read the mappings of the file.

    Args:
        edited: the file replaces one that is in force. A file without mappings is then refused unless it has
            `mapping = []`, because a file that an editor or a full disk truncated looks the same.

    Raises:
        MappingsRefused: with every problem.
    """
    text = _text(file)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, _, place = str(error).partition(" (at ")
        line = re.match(r"line (\d+),", place)
        number = line[1] if line else str(len(text.splitlines()))  # a problem at the end has no line number
        raise MappingsRefused([f"{file}:{number}: not TOML: {message}"]) from error
    except RecursionError as error:
        raise MappingsRefused([f"{file}: is nested too deeply"]) from error
    document = Document(file, text)
    problems = [
        document.problem((name,), f"this section is not supported; mappings are [[{SECTION}]]")
        for name in tree
        if name != SECTION
    ]
    tables = tree.get(SECTION, [])
    if edited and not problems and SECTION not in tree:
        raise MappingsRefused([f"{file}: is empty; write `{SECTION} = []` to end all its services"])
    if not isinstance(tables, list):
        raise MappingsRefused([*problems, document.problem((SECTION,), f"write [[{SECTION}]], one for each")])
    mappings: list[FileMapping] = []
    ids: set[str] = set()
    for index, table in enumerate(tables):
        way: Where = (SECTION, index)
        wire = ProxyMapping()
        before = len(problems)
        if _fill(wire, table, way, document, problems, _REFUSED) and len(problems) == before:
            missing = [name for name in ("id", "domain") if not getattr(wire, name)]
            problems.extend(document.problem(way, f"{name} is required") for name in missing)
            if wire.id in ids:
                problems.append(document.problem((*way, "id"), f"{wire.id!r} is already the id of another mapping"))
            ids.add(wire.id)
            mappings.append(FileMapping(wire, document, index))
    if problems:
        raise MappingsRefused(problems)
    return mappings


def _text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise MappingsRefused([f"{file}: cannot be read: {error.strerror}"]) from error
    if len(data) > MAX_BYTES:
        raise MappingsRefused([f"{file}: is larger than {MAX_BYTES} bytes"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MappingsRefused([f"{file}: is not UTF-8"]) from error


# Hand-made, because `json_format.ParseDict` stops at the first mistake and names no line, takes "80" or 80.0 where a
# whole number belongs, and knows neither the short names of enums nor Go's durations.
def _fill(
    message: Message,
    table: object,
    way: Where,
    document: Document,
    problems: list[str],
    refused: Mapping[str, str] | None = None,
) -> bool:
    """Copy a table's values into a message's fields. Returns False, and adds a problem, if it is not a table."""
    if not isinstance(table, dict):
        problems.append(document.problem(way, f"expected a table, not {_kind(table)}"))
        return False
    fields = message.DESCRIPTOR.fields_by_name
    for name, value in table.items():
        at = (*way, name)
        if refused and name in refused:
            problems.append(document.problem(at, refused[name]))
            continue
        field = fields.get(name)
        if field is None or name in _SPELLINGS:
            names = set(fields) - _SPELLINGS
            near = get_close_matches(name, names, n=1)
            supported = ", ".join(sorted(names - set(refused or ())))
            hint = f"did you mean {near[0]}?" if near else f"supported are: {supported}"
            problems.append(document.problem(at, f"this field is not supported; {hint}"))
            continue
        try:
            _set(message, field, value, at, document, problems)
        except (TypeError, ValueError) as error:
            problems.append(document.problem(at, str(error)))
    return True


def _set(message: Message, field: Any, value: Any, way: Where, document: Document, problems: list[str]) -> None:
    """Set one field. Raises TypeError or ValueError for a value that the field cannot have."""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        _set_map(getattr(message, field.name), field, value, way, document, problems)
    elif field.is_repeated:
        if not isinstance(value, list):
            raise TypeError(f"expected a list, not {_kind(value)}")
        for position, item in enumerate(value):
            if kind is None:
                getattr(message, field.name).append(_scalar(field, item))
            else:
                _fill(getattr(message, field.name).add(), item, (*way, position), document, problems)
    elif kind is not None and kind.full_name == Duration.DESCRIPTOR.full_name:
        getattr(message, field.name).FromNanoseconds(_nanoseconds(value))
    elif kind is not None:
        _fill(getattr(message, field.name), value, way, document, problems)
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _scalar(field, value))


def _set_map(target: Any, field: Any, value: Any, way: Where, document: Document, problems: list[str]) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"expected a table, not {_kind(value)}")
    item = field.message_type.fields_by_name["value"]
    for name, inner in value.items():
        if item.message_type is not None and item.message_type.full_name == Struct.DESCRIPTOR.full_name:
            if not isinstance(inner, dict):
                problems.append(document.problem((*way, name), f"expected a table, not {_kind(inner)}"))
                continue
            try:
                target[name].update(inner)
            except ValueError:
                problems.append(document.problem((*way, name), "must hold only texts, numbers, switches and lists"))
        else:
            try:
                target[name] = _scalar(item, inner)
            except (TypeError, ValueError) as error:
                problems.append(document.problem((*way, name), str(error)))


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        return _enum(field.enum_type, value)
    kind: type
    shown: str
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        kind, shown = bool, "true or false"
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        kind, shown = str, "a text"
    else:
        kind, shown = int, "a whole number"
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"expected {shown}, not {_kind(value)}")
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        raise ValueError(f"{value} is out of range")
    return value


def _enum(kind: EnumDescriptor, value: Any) -> int:
    prefix = kind.values[0].name.rsplit("_", 1)[0] + "_"
    names = {value.name.removeprefix(prefix).lower(): value.number for value in kind.values}
    if not isinstance(value, str) or value.lower() not in names:
        raise ValueError(f"expected one of {', '.join(names)}")
    return names[value.lower()]


def _nanoseconds(value: Any) -> int:
    if isinstance(value, str):
        nanoseconds = parse_nanoseconds(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        nanoseconds = int(value * 1_000_000_000)
    else:
        raise TypeError(f"expected seconds, or a duration such as 90s, not {_kind(value)}")
    if nanoseconds < 0:
        raise ValueError("must not be negative")
    return nanoseconds


def _kind(value: object) -> str:
    kinds = {bool: "true or false", str: "a text", int: "a number", float: "a number", dict: "a table", list: "a list"}
    return kinds.get(type(value), "a date")


def _dotted(way: Where) -> str:
    text = ""
    for part in way:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


_TABLE = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_NAME = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


def _positions(text: str) -> dict[Where, int]:
    """The line of each table header and key of a valid TOML document; of several lines the first.

    Entries of inline tables and lists have no line of their own; callers use the line of the entry around them.
    """
    lines: dict[Where, int] = {}
    counts: dict[Where, int] = {}
    table: Where = ()
    quote = ""
    for number, line in enumerate(text.splitlines(), 1):
        if quote:
            if line.count(quote) % 2:
                quote = ""
            continue
        if (match := _TABLE.fullmatch(line)) is not None and not line.lstrip().startswith("[ "):
            table = _resolved(_NAME.findall(match[2]), counts, begins=match[1] == "[[")
            for end in range(1, len(table) + 1):
                lines.setdefault(table[:end], number)
        elif (match := _KEY.match(line)) is not None:
            way = table
            for name in _NAME.findall(match[1]):
                way = (*way, name.strip("\"'"))
                lines.setdefault(way, number)
        quote = next((mark for mark in ('"""', "'''") if line.count(mark) % 2), "")
    return lines


def _resolved(names: list[str], counts: dict[Where, int], *, begins: bool) -> Where:
    """The path that a header names, through the latest item of each list of tables on it."""
    way: Where = ()
    for position, quoted in enumerate(names):
        way = (*way, quoted.strip("\"'"))
        if begins and position == len(names) - 1:
            counts[way] = counts.get(way, -1) + 1
        if way in counts:
            way = (*way, counts[way])
    return way
