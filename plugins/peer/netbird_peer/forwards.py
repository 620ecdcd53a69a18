"""The form in which commands name ports: `[udp/]PORT=HOST:PORT`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Forward:
    """A port to listen on, and the host and port to which its streams or, with `udp`, its datagrams go."""

    port: int
    host: str
    target: int
    udp: bool = False

    @property
    def request(self) -> tuple[int, str, int] | tuple[int, str, int, Literal["udp"]]:
        """The forward in a request to a running `up`."""
        plain = (self.port, self.host, self.target)
        return (*plain, "udp") if self.udp else plain

    @classmethod
    def parse(cls, text: str, *, local: bool = False) -> Forward:
        """Raises ValueError. A `local` port may be 0, which picks a free one."""
        udp = text.startswith("udp/")
        port, equals, target = text.removeprefix("udp/" if udp else "tcp/").partition("=")
        host, colon, target_port = target.rpartition(":")
        try:
            numbers = int(port), int(target_port)
        except ValueError:
            numbers = (-1, -1)
        least = 0 if local else 1
        if not equals or not colon or not host or not least <= numbers[0] < 65536 or not 0 < numbers[1] < 65536:
            raise ValueError(f"{text!r} is not [udp/]PORT=HOST:PORT")
        return cls(numbers[0], host.strip("[]"), numbers[1], udp)
