"""Parses the parts of a mapping that operators write as text: paths, targets and custom headers.

A text with two possible readings is refused here, so that later code never has to choose between them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from google.protobuf.duration_pb2 import Duration

from netbird_host.http_fields import TOKEN
from netbird_proxy.api.errors import RouteRefused
from netbird_proxy.api.headers import fold, is_reserved
from netbird_proxy.api.model import Address
from netbird_proxy.http.folding import fold_host

_PORTS: Final = {"http": 80, "https": 443}
# Characters that a raw path contains unescaped, beside letters, digits and `-._`.
_RAW_PATH: Final = "/%:@!$&'()*+,;=~"
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BAD_IN_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BRACKETED: Final = re.compile(r"\[[0-9A-Fa-f:.]+\](:[0-9]*)?")
# Fields that delimit or address a message. Only the core sets them.
_FRAMING: Final = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade content-length host expect".split()
)


def raw_prefix(path: str) -> bytes:
    """The raw prefix, which ends on a segment border; `/` matches every path."""
    path = path or "/"
    if not path.startswith("/"):
        raise RouteRefused(f"path {path!r} does not start with a slash")
    raw = _raw(path, what="path")
    if "//" in raw or any(unquote(segment) in (".", "..") for segment in raw.split("/")):
        # No request's path is looked up in this form.
        raise RouteRefused(f"path {path!r} has empty or dot segments")
    return raw.rstrip("/").encode("ascii") or b"/"


def _raw(path: str, *, what: str) -> str:
    """The path as a request line carries it: escapes are kept, and characters not allowed there are escaped."""
    if "?" in path or "#" in path:
        raise RouteRefused(f"{what} {path!r} holds a query or a fragment")
    if _BAD_ESCAPE.search(path):
        raise RouteRefused(f"{what} {path!r} has a % that begins no escape")
    return quote(path, safe=_RAW_PATH)


def http_target(target: str) -> tuple[str, Address, bytes]:
    parts = _split(target)
    if parts.scheme not in _PORTS:
        raise RouteRefused("a target is not an http:// or https:// URL")
    # urlsplit drops a lone mark, so the text itself is checked.
    if "?" in target or "#" in target:
        raise RouteRefused("a target holds a query or a fragment")
    return parts.scheme, _address(parts, _PORTS[parts.scheme]), _raw(parts.path or "/", what="target path").encode()


def stream_target(target: str) -> Address:
    parts = _split(f"//{target}")
    if parts.path or parts.query or parts.fragment:
        raise RouteRefused("a target is not host:port")
    return _address(parts, None)


def _split(target: str) -> SplitResult:
    # urlsplit silently drops some of these.
    if any(character <= " " or character in "\x7f\\" for character in target):
        raise RouteRefused("a target holds spaces, control characters or backslashes")
    try:
        return urlsplit(target)
    except ValueError:
        raise RouteRefused("a target is not a URL") from None


def _address(parts: SplitResult, default_port: int | None) -> Address:
    """The address to dial. No message quotes the target, because it may contain a password."""
    if "@" in parts.netloc:
        raise RouteRefused("a target holds user information")
    if "[" in parts.netloc and not _BRACKETED.fullmatch(parts.netloc):
        # urlsplit overlooks text beside the brackets.
        raise RouteRefused("a target's host or port cannot be read")
    try:
        port = parts.port
        name = parts.hostname or ""
        host = fold_host(f"[{name}]" if ":" in name else name)
    except ValueError:
        raise RouteRefused("a target's host or port cannot be read") from None
    port = default_port if port is None else port
    if not port:
        raise RouteRefused("a target has no port")
    return Address(host.strip("[]"), port)


def seconds(duration: Duration) -> float | None:
    """The duration in seconds; None where it is zero or negative, which NetBird ignores too."""
    total = duration.seconds + duration.nanos / 1e9
    return total if total > 0 else None


def custom_headers(configured: Mapping[str, str], ignored: list[str]) -> tuple[tuple[bytes, bytes], ...]:
    headers: dict[bytes, bytes] = {}
    for name in sorted(configured):
        raw_name, raw_value = name.encode().lower(), configured[name].encode().strip(b" \t")
        if not TOKEN.fullmatch(raw_name) or _BAD_IN_VALUE.search(raw_value):
            raise RouteRefused(f"custom header {name!r} cannot be sent")
        if is_reserved(raw_name) or fold(raw_name) in _FRAMING:
            ignored.append(f"path.options.custom_headers.{name}")
        else:
            headers[raw_name] = raw_value
    return tuple(headers.items())
