"""The same raw requests through nginx and through this proxy, before an upstream that records each byte.

Where the upstream's view differs, `differential.toml` says why, by case or by rule of the attack corpus; a difference
without a reason fails, and so does a reason without a difference. Run as `python -m tests.live.differential`.
"""

from __future__ import annotations

import argparse
import asyncio
import codecs
import re
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from examples.demo.processes import Processes
from examples.demo.stack import free_port
from tests.netbird_proxy.app.stage import Recording, Upstream, staged

HERE = Path(__file__).parent
CASES = HERE / "differential.toml"
ATTACKS = HERE.parent / "corpus" / "attacks" / "attacks.toml"
WAIT = 10.0

NOT_COMPARED = {
    # What either says of the client's connection and of itself, in its own words.
    *(b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-real-ip", b"via"),
    *(b"connection", b"host"),
    # How a body is framed is between each two; the body itself is compared.
    *(b"content-length", b"transfer-encoding"),
}
NGINX = """\
daemon off; master_process off; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  keepalive_timeout 100ms; client_header_timeout 400ms; client_body_timeout 400ms; lingering_close off;
  proxy_http_version 1.1; proxy_request_buffering off; proxy_set_header Connection "";
  server {{
    listen 127.0.0.1:{other}; return 404;
  }}
  server {{
    listen 127.0.0.1:{port} default_server; return 404;
  }}
  server {{
    listen 127.0.0.1:{port}; server_name app.example;
    location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
    location = /api {{ proxy_pass http://127.0.0.1:{upstream}/base/; }}
    location /api/ {{ proxy_pass http://127.0.0.1:{upstream}/base/; }}
  }}
}}
"""


_NAME = re.compile(rb"\r\n[^:\r\n]+:")


class Lenient(Recording):
    """Takes names in any case, and keeps bytes that make no request it could read: they are part of the view."""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        if not end:
            self.upstream.bytes += data
            return
        folded = _NAME.sub(lambda found: found[0].lower(), head)
        self.buffer.clear()
        try:
            super().data_received(folded + end + rest)
        except (AssertionError, ValueError):
            self.transport.abort()


@dataclass(frozen=True, slots=True)
class Case:
    """One connection's bytes."""

    name: str
    rule: str
    sent: bytes


@dataclass(slots=True)
class View:
    """What an upstream saw of a case: whole requests, and the head of a begun one."""

    requests: list[tuple[str, list[tuple[bytes, bytes]], bytes]] = field(default_factory=list)
    begun: bytes = b""

    @classmethod
    def of(cls, upstream: Upstream) -> View:
        def named(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
            lower = ((name.lower(), value) for name, value in fields)
            return sorted(pair for pair in lower if pair[0] not in NOT_COMPARED)

        return cls([(one.line, named(one.fields), one.body) for one in upstream.seen], bytes(upstream.bytes))

    def difference(self, other: View) -> str:
        """In which way `self`, ours, differs from nginx's; empty where it does not."""
        if len(self.requests) != len(other.requests):
            if not self.requests:
                return "we forward nothing"
            if not other.requests:
                return "nginx forwards nothing"
            return f"{len(self.requests)} requests against {len(other.requests)}"
        for ours, theirs in zip(self.requests, other.requests, strict=True):
            if ours[0] != theirs[0]:
                return f"line {ours[0][:60]!r} against {theirs[0][:60]!r}"
            if ours[2] != theirs[2]:
                return "body"
            if ours[1] != theirs[1]:
                mine, its = Counter(ours[1]), Counter(theirs[1])
                only = [b"%b: %b" % pair for pair in mine - its][:2], [b"%b: %b" % pair for pair in its - mine][:2]
                return f"fields: only ours {only[0]}, only nginx's {only[1]}"[:200]
        return ""


def cases() -> list[Case]:
    own = tomllib.loads(CASES.read_text())["case"]
    attacks = tomllib.loads(ATTACKS.read_text())["attack"]
    found = [Case(one["name"], "", _raw(one["bytes"])) for one in own]
    counted: Counter[str] = Counter()
    for one in attacks:
        counted[one["rule"]] += 1
        found.append(Case(f"{one['rule']} {counted[one['rule']]}", one["rule"], _raw(one["bytes"])))
    return found


def _raw(text: str) -> bytes:
    return codecs.decode(text, "unicode_escape").encode("latin-1")


@asynccontextmanager
async def nginx(directory: Path) -> AsyncIterator[tuple[int, Upstream]]:
    """nginx with the same two locations, and its upstream."""
    upstream = Upstream()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Lenient(upstream), "127.0.0.1", 0)
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(
        NGINX.format(home=directory, port=port, other=free_port(), upstream=server.sockets[0].getsockname()[1])
    )
    async with server, Processes(directory / "logs") as processes:
        process = await processes.start("nginx", ["nginx", "-c", str(config), "-p", str(directory)])
        async with asyncio.timeout(WAIT):
            while process.running:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        yield port, upstream


async def ask(port: int, sent: bytes) -> bytes:
    """Send, and read what comes until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(2.0):
            writer.write(sent)
            await writer.drain()
            # nginx takes a half-close for a client that left, so it is nginx who ends idle connections.
            while data := await reader.read(65536):
                received += data
    writer.transport.abort()
    return received


async def compared(directory: Path, wanted: str) -> list[tuple[Case, str]]:
    found = []
    async with nginx(directory) as (port, theirs), staged("host") as stage:
        for case in cases():
            if wanted not in case.name:
                continue
            for upstream in (theirs, stage.upstream):
                upstream.seen.clear()
                upstream.bytes.clear()
            async with asyncio.TaskGroup() as group:
                group.create_task(ask(port, case.sent))
                group.create_task(asyncio.wait_for(stage.ask(case.sent), WAIT))
            found.append((case, View.of(stage.upstream).difference(View.of(theirs))))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="make differential", description=__doc__)
    parser.add_argument("wanted", nargs="?", default="", help="only cases whose name contains it")
    parser.add_argument("--all", action="store_true", help="print differences that have a reason, too")
    arguments = parser.parse_args()
    said = tomllib.loads(CASES.read_text())
    reasons: dict[str, str] = {one["name"]: one["differs"] for one in said["case"] if "differs" in one}
    reasons |= said["rules"]
    with tempfile.TemporaryDirectory() as directory:
        results = asyncio.run(compared(Path(directory), arguments.wanted))
    differing: set[str] = set()
    unexplained = 0
    for case, difference in results:
        key = case.rule or case.name
        if difference:
            differing.add(key)
            if key not in reasons:
                unexplained += 1
            if key not in reasons or arguments.all:
                print(f"{case.name}: {difference}\n    {case.sent[:160]!r}")
                if key in reasons:
                    print(f"    because {reasons[key]}")
    stale = [] if arguments.wanted else sorted(set(reasons) - differing)
    for key in stale:
        print(f"{key}: a reason, and no difference")
    same = sum(not difference for _, difference in results)
    print(f"{len(results)} cases: {same} the same, {len(results) - same - unexplained} different for a reason, "
          f"{unexplained} unexplained, {len(stale)} reasons without a difference")  # fmt: skip
    return 1 if unexplained or stale else 0


if __name__ == "__main__":
    sys.exit(main())
