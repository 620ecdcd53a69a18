"""The kinds of load: their paths, connections and heads, and the servers that are put under each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

UPLOAD = Path(__file__).with_name("upload.lua")

PRODUCT = "netbird-proxy"
TRACED = "netbird-proxy, tracing on"
NGINX, HAPROXY, CADDY, CADDY_NOW = "nginx", "HAProxy", "Caddy", "Caddy, current"
NGINX_LOG, CADDY_LOG = "nginx, access log", "Caddy, access log"
UVICORN, GRANIAN, MITMPROXY = "uvicorn, fixed answer", "granian, fixed answer", "mitmproxy"
CADDIES = (CADDY, CADDY_NOW)
SUBJECTS = {
    "nginx": NGINX, "nginx-log": NGINX_LOG, "haproxy": HAPROXY, "caddy": CADDY, "caddy-now": CADDY_NOW,
    "caddy-log": CADDY_LOG, "uvicorn": UVICORN, "granian": GRANIAN, "mitmproxy": MITMPROXY,
    "netbird-proxy": PRODUCT, "netbird-proxy-traced": TRACED,
}  # fmt: skip
"""Names for the command line, and those that tables show."""

PEERS = (NGINX, HAPROXY, CADDY, CADDY_NOW, PRODUCT)
EVERYBODY = (NGINX, NGINX_LOG, HAPROXY, CADDY, CADDY_NOW, CADDY_LOG, UVICORN, GRANIAN, MITMPROXY, PRODUCT, TRACED)

BROWSER = (
    "Connection: keep-alive",
    'sec-ch-ua: "Chromium";v="142", "Not_A Brand";v="99"',
    "sec-ch-ua-mobile: ?0",
    'sec-ch-ua-platform: "Linux"',
    "Upgrade-Insecure-Requests: 1",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Sec-Fetch-Site: none",
    "Sec-Fetch-Mode: navigate",
    "Sec-Fetch-User: ?1",
    "Sec-Fetch-Dest: document",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Accept-Language: en-US,en;q=0.9,de;q=0.8",
    "Cookie: theme=dark; visitor=0f8fad5b-d9cb-469f-a165-70867728950e",
)
"""Fields of a browser's first request: 15 together with Host."""


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of load.

    Attributes:
        entry: which of a subject's addresses is asked: `plain`, `tls` or `private`.
        base: the row whose nginx and Caddy this one is compared with; its own where empty.
        large: tables show milliseconds a request.
        message: the size of websocket messages that are echoed in place of requests; 0 for requests.
    """

    key: str
    title: str
    entry: str = "plain"
    path: str = "/"
    connections: int = 32
    headers: tuple[str, ...] = ()
    script: Path | None = None
    subjects: Sequence[str] = PEERS
    base: str = ""
    large: bool = False
    message: int = 0


def _bulk(key: str, title: str, **more: object) -> Row:
    down = {"path": "/large", "connections": 2, "large": True}
    return Row(key, title, **{**down, **more})  # type: ignore[arg-type]


_UP = {"path": "/sink", "script": UPLOAD}
_ECHOES = (UVICORN, PRODUCT)
HTTP = (
    Row("plain", "HTTP, 64 B", subjects=EVERYBODY),
    Row("browser", "HTTP, a browser's head of 15 fields", headers=BROWSER),
    Row("tls", "HTTPS, kept connections", "tls", subjects=(*PEERS, UVICORN, MITMPROXY)),
    Row("handshakes", "HTTPS, a new connection each", "tls", headers=("Connection: close",), connections=8),
    Row("wide", "HTTP, 64 B, 256 connections", connections=256),
    Row("wide-16k", "HTTP, 16 KB, 256 connections", path="/16k", connections=256),
    _bulk("down", "10 MB down, HTTP"),
    _bulk("down-tls", "10 MB down, HTTPS", entry="tls"),
    _bulk("up", "10 MB up, HTTP", **_UP),
    _bulk("up-tls", "10 MB up, HTTPS", entry="tls", **_UP),
    Row("messages", "websocket echoes, 64 B", "messages", message=64, connections=16, subjects=_ECHOES),
    Row("messages-16k", "websocket echoes, 16 KB", "messages", message=16_384, connections=16, subjects=_ECHOES),
)
QUICK = tuple(
    Row(**{**{name: getattr(row, name) for name in Row.__slots__}, "subjects": PEERS})
    for row in HTTP
    if row.key in ("plain", "browser", "tls")
)
_FEW = (NGINX, CADDY, CADDY_NOW, PRODUCT)
OVERLAY = (
    Row("plain", "HTTP, 64 B", subjects=_FEW),
    Row("private", "HTTP over the overlay, 64 B", "private", subjects=(PRODUCT,), base="plain"),
    _bulk("down", "10 MB down, HTTP", subjects=_FEW),
    _bulk("down-private", "10 MB down, over the overlay", entry="private", subjects=(PRODUCT,), base="down"),
    _bulk("up-private", "10 MB up, over the overlay", entry="private", subjects=(PRODUCT,), base="down", **_UP),
)
ROWS = {row.key: row for row in HTTP} | {row.key: row for row in OVERLAY if row.base}
