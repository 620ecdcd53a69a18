"""Mappings from a TOML file: the fields of the wire's `ProxyMapping`, each complaint with its line, and when to look.

Reading is all or nothing: a file with one mistake in it is refused as a whole, so that whoever applies it never applies
half of an edit. What only management can vouch for (people, logins, tunnels) has no place in a file.
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
"""A way into the document: `("mapping", 0, "path", 1, "target")`."""

MAX_BYTES: Final = 16 << 20
SECTION: Final = "mapping"
_REFUSED: Final = {
    "type": "is the mapping stream's own",
    "auth_token": "is the mapping stream's own",
    "account_id": "belongs to management: a file's services have no account and no tunnel",
    "private": "needs peers and groups, which only management knows: a file's services are public",
    "auth": "needs somebody who judges logins, which is management: a file's services have none",
}
_SPELLINGS: Final = frozenset({"direct_upstream_11"})


class MappingsRefused(Exception):
    """The file cannot be used. One sentence a problem: `FILE:LINE: field: what is wrong`."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class FileMapping:
    """One mapping as the file says it.

    Attributes:
        wire: what decoding takes; its account is empty.
    """

    wire: ProxyMapping
    document: Document
    index: int

    def problem(self, reason: str, *, path: int | None = None) -> str:
        """A refusal of this mapping, with the line of what it speaks of, as far as that can be told.

        Args:
            path: which of its paths is refused; None where that is not known, or all are.
        """
        return self.document.problem((SECTION, self.index, *self._about(reason, path)), reason)

    def part(self, path: int) -> ProxyMapping:
        """The mapping with one of its paths alone: whoever refuses that refuses it for this path, or for no path."""
        part = ProxyMapping()
        part.CopyFrom(self.wire)
        del part.path[:]
        part.path.append(self.wire.path[path])
        return part

    def _about(self, reason: str, path: int | None) -> Where:
        """The field that a refusal names, by its own name or dotted."""
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
    """One file's text with where things stand in it."""

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
    """The mappings of the file.

    Args:
        edited: the file replaces one that is in force. One without any mapping is refused then, unless it says so:
            a file that an editor or a full disk cut to nothing looks the same.

    Raises:
        MappingsRefused: with every problem that was found.
    """
    text = _text(file)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, _, place = str(error).partition(" (at ")
        line = re.match(r"line (\d+),", place)
        number = line[1] if line else str(len(text.splitlines()))  # else it says "end of document"
        raise MappingsRefused([f"{file}:{number}: not TOML: {message}"]) from error
    except RecursionError as error:
        raise MappingsRefused([f"{file}: is nested too deeply"]) from error
    document = Document(file, text)
    problems = [
        document.problem((name,), f"there is no such section; mappings are [[{SECTION}]]")
        for name in tree
        if name != SECTION
    ]
    tables = tree.get(SECTION, [])
    if edited and not problems and SECTION not in tree:
        raise MappingsRefused([f"{file}: is empty; write `{SECTION} = []` to end all its services"])
    if not isinstance(tables, list):
        raise MappingsRefused([*problems, document.problem((SECTION,), f"write [[{SECTION}]], one for each")])
    found: list[FileMapping] = []
    ids: set[str] = set()
    for index, table in enumerate(tables):
        way: Where = (SECTION, index)
        wire = ProxyMapping()
        before = len(problems)
        if _fill(wire, table, way, document, problems, _REFUSED) and len(problems) == before:
            missing = [name for name in ("id", "domain") if not getattr(wire, name)]
            problems.extend(document.problem(way, f"{name} is required") for name in missing)
            if wire.id in ids:
                problems.append(document.problem((*way, "id"), f"{wire.id!r} is another mapping's id already"))
            ids.add(wire.id)
            found.append(FileMapping(wire, document, index))
    if problems:
        raise MappingsRefused(problems)
    return found


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


def _fill(
    message: Message,
    table: object,
    way: Where,
    document: Document,
    problems: list[str],
    refused: Mapping[str, str] | None = None,
) -> bool:
    """Put a table's values into a message's fields. False, and problems, where it is no table."""
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
            known = set(fields) - _SPELLINGS
            near = get_close_matches(name, known, n=1)
            told = ", ".join(sorted(known - set(refused or ())))
            hint = f"did you mean {near[0]}?" if near else f"known are: {told}"
            problems.append(document.problem(at, f"there is no such field; {hint}"))
            continue
        try:
            _set(message, field, value, at, document, problems)
        except (TypeError, ValueError) as error:
            problems.append(document.problem(at, str(error)))
    return True


def _set(message: Message, field: Any, value: Any, way: Where, document: Document, problems: list[str]) -> None:
    """One field. TypeError or ValueError for a value that it cannot have."""
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
                problems.append(document.problem((*way, name), "holds what is neither text, number, switch nor list"))
        else:
            try:
                target[name] = _scalar(item, inner)
            except (TypeError, ValueError) as error:
                problems.append(document.problem((*way, name), str(error)))


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        return _enum(field.enum_type, value)
    wanted: type
    shown: str
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        wanted, shown = bool, "true or false"
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        wanted, shown = str, "a text"
    else:
        wanted, shown = int, "a whole number"
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise TypeError(f"expected {shown}, not {_kind(value)}")
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        raise ValueError(f"{value} is out of range")
    return value


def _enum(kind: EnumDescriptor, value: Any) -> int:
    prefix = kind.values[0].name.rsplit("_", 1)[0] + "_"
    names = {one.name.removeprefix(prefix).lower(): one.number for one in kind.values}
    if not isinstance(value, str) or value.lower() not in names:
        raise ValueError(f"expected one of {', '.join(names)}")
    return names[value.lower()]


def _nanoseconds(value: Any) -> int:
    if isinstance(value, str):
        found = parse_nanoseconds(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = int(value * 1_000_000_000)
    else:
        raise TypeError(f"expected seconds, or a duration such as 90s, not {_kind(value)}")
    if found < 0:
        raise ValueError("is less than nothing")
    return found


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
    """The line of each table header and key of a document that is known to be TOML; the first line of a thing counts.

    What stands inside inline tables and lists has no line of its own: the one around it is near enough.
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
    """The way that a header names: through the latest item of each list of tables on it."""
    way: Where = ()
    for position, quoted in enumerate(names):
        way = (*way, quoted.strip("\"'"))
        if begins and position == len(names) - 1:
            counts[way] = counts.get(way, -1) + 1
        if way in counts:
            way = (*way, counts[way])
    return way
