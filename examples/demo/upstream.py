"""An upstream that answers with the request that it received: every header line and trailer unchanged, in JSON.

Run it as `python -m examples.demo.upstream NAME [ADDRESS]`; it prints `ready PORT` when it accepts connections. `GET
/__seen__` returns the number of other requests, so that a test can check that the upstream was not dialed.
"""

from __future__ import annotations

import asyncio
import json
import sys

MAX_HEAD = 1 << 20
SLOW_CHUNKS = 40


class Upstream:
    """Answers sequential requests on each connection."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        start, *lines = head[:-4].decode("latin-1").split("\r\n")
        method, target, _ = start.split(" ", 2)
        headers = [line.split(":", 1) for line in lines]
        fields = {name.lower(): value.strip() for name, value in headers}
        body, trailers = await self._body(reader, fields)
        if target in ("/__drip__", "/__slow__", "/__echo__"):
            self.seen += 1
            await self._at_length(target, reader, writer)
            return False
        if target == "/__seen__":
            answer = json.dumps({"upstream": self.name, "seen": self.seen}).encode()
        else:
            self.seen += 1
            answer = json.dumps(
                {
                    "upstream": self.name,
                    "method": method,
                    "target": target,
                    "headers": [[name, value.strip()] for name, value in headers],
                    "trailers": trailers,
                    "body_bytes": len(body),
                },
                indent=2,
            ).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)
            + (b"" if method == "HEAD" else answer)
        )
        await writer.drain()
        return True

    async def _at_length(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer with an endless page, a page that takes two seconds, or an upgrade that echoes."""
        if target == "/__echo__":
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            return
        count = SLOW_CHUNKS if target == "/__slow__" else 1 << 30
        length = b"content-length: %d\r\n" % (4 * count) if target == "/__slow__" else b""
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\n" + length + b"\r\n")
        for _ in range(count):
            writer.write(b"drip")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def _body(self, reader: asyncio.StreamReader, fields: dict[str, str]) -> tuple[bytes, list[list[str]]]:
        if fields.get("transfer-encoding", "").lower() != "chunked":
            return await reader.readexactly(int(fields.get("content-length", "0"))), []
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        trailers: list[list[str]] = []
        while line := (await reader.readline()).strip():
            name, value = line.decode("latin-1").split(":", 1)
            trailers.append([name, value.strip()])
        return body, trailers


async def main(name: str, address: str) -> None:
    server = await asyncio.start_server(Upstream(name).serve, address, 0, limit=MAX_HEAD)
    print(f"ready {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"))
    except KeyboardInterrupt:
        sys.exit(0)
