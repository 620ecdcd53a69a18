"""Where a mapping leads, read from what operators write: paths, targets, custom headers.

Whatever could be read in two ways is refused here, once, so that nobody behind has to wonder which it was.
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
_RAW_PATH: Final = "/%:@!$&'()*+,;=~"
"""What stands in a raw path as it is, beside letters, digits and `-._`."""
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BAD_IN_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BRACKETED: Final = re.compile(r"\[[0-9A-Fa-f:.]+\](:[0-9]*)?")
_FRAMING: Final = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade content-length host expect".split()
)
"""Names that say where a message ends or whom it is for: the core's alone."""


def raw_prefix(path: str) -> bytes:
    """The raw prefix on a segment's border: `/` for everything."""
    path = path or "/"
    if not path.startswith("/"):
        raise RouteRefused(f"path {path!r} does not start with a slash")
    raw = _raw(path, what="path")
    if "//" in raw or any(unquote(segment) in (".", "..") for segment in raw.split("/")):
        # No request's path would be looked up as that.
        raise RouteRefused(f"path {path!r} has empty or dot segments")
    return raw.rstrip("/").encode("ascii") or b"/"


def _raw(path: str, *, what: str) -> str:
    """A path as it stands on a request line: escapes stay, what may not stand there is escaped."""
    if "?" in path or "#" in path:
        raise RouteRefused(f"{what} {path!r} holds a query or a fragment")
    if _BAD_ESCAPE.search(path):
        raise RouteRefused(f"{what} {path!r} holds a % that begins no escape")
    return quote(path, safe=_RAW_PATH)


def http_target(target: str) -> tuple[str, Address, bytes]:
    parts = _split(target)
    if parts.scheme not in _PORTS:
        raise RouteRefused("a target is not an http:// or https:// URL")
    # The split drops a lone mark: look at the text itself.
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
    """Where to dial. No message quotes the target: it may hold a password, which is one reason to refuse it."""
    if "@" in parts.netloc:
        raise RouteRefused("a target holds user information")
    if "[" in parts.netloc and not _BRACKETED.fullmatch(parts.netloc):
        # The split overlooks what stands beside the brackets.
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
    """NetBird leaves an unlimited or senseless time out; so do we."""
    found = duration.seconds + duration.nanos / 1e9
    return found if found > 0 else None


def custom_headers(wanted: Mapping[str, str], ignored: list[str]) -> tuple[tuple[bytes, bytes], ...]:
    headers: dict[bytes, bytes] = {}
    for name in sorted(wanted):
        raw_name, raw_value = name.encode().lower(), wanted[name].encode().strip(b" \t")
        if not TOKEN.fullmatch(raw_name) or _BAD_IN_VALUE.search(raw_value):
            raise RouteRefused(f"custom header {name!r} cannot be sent")
        if is_reserved(raw_name) or fold(raw_name) in _FRAMING:
            ignored.append(f"path.options.custom_headers.{name}")
        else:
            headers[raw_name] = raw_value
    return tuple(headers.items())
