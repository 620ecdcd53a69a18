"""An upstream that takes bodies of a stated length and answers each with a few bytes: `python -m bench.sink PORT`."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"
_REFUSAL = b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Sink(asyncio.BufferedProtocol):
    """Reads a head, then counts its body without looking at it."""

    def __init__(self) -> None:
        self._buffer = bytearray(262_144)
        self._head = b""
        self._left = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        if self._left:
            rest = count - self._left
            self._left = max(0, -rest)
            if self._left:
                return
            self._write(_ANSWER)
            self._head = bytes(self._buffer[count - rest : count]) if rest else b""
        else:
            self._head += self._buffer[:count]
        self._begin()

    def _begin(self) -> None:
        head, separator, body = self._head.partition(b"\r\n\r\n")
        if not separator:
            return
        length = _LENGTH.search(head)
        if length is None:
            self._write(_REFUSAL)
            return
        self._head = b""
        self._left = max(0, int(length[1]) - len(body))
        if not self._left:
            self._write(_ANSWER)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1])))
