"""The smallest programs with a socket around STUN and ICE: `server ADDRESS…`, and `agent NAME SERVER…`.

An agent reads JSON lines and writes JSON lines: `{"credentials": […]}` and `{"candidate": "…"}` in both directions, and
`{"selected": […]}`, `{"failed": true}` and `{"heard": "…"}` at its end. The controlling agent is called `a`.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from typing import Any

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.agent import Failed, IceAgent, Selected
from netbird_overlay.ice.candidates import (
    format_candidate,
    gather_hosts,
    letters,
    parse_candidate,
    server_reflexive,
)
from netbird_overlay.members import IceCredentials
from netbird_overlay.stun import BadStun, Kind, Mapped, Message, StunClient, encode, parse

PORT = 51820
STUN_PORT = 3478


def serve(addresses: list[str]) -> None:
    """Answer STUN queries on each address."""
    sockets = []
    for address in addresses:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, STUN_PORT))
        sockets.append(sock)
    print("ready", flush=True)
    while True:
        for sock in select.select(sockets, [], [])[0]:
            datagram, (host, port) = sock.recvfrom(2048)
            try:
                query = parse(datagram)
            except BadStun:
                continue
            answer = Message(Kind.SUCCESS, query.transaction, mapped=Endpoint(host, port))
            sock.sendto(encode(answer), (host, port))


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


class Agent:
    """One side of a session, with the other side on standard input and output."""

    def __init__(self, name: str, servers: list[str]) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("", PORT))
        self.local = IceCredentials(letters(16, os.urandom), letters(32, os.urandom))
        self.stun = StunClient(os.urandom)
        self.servers = [Endpoint(server, STUN_PORT) for server in servers]
        self.agent: IceAgent | None = None
        self.selected: Endpoint | None = None

    def run(self) -> None:
        say(credentials=[self.local.ufrag, self.local.pwd])
        unread = b""
        while True:
            self.send()
            now = time.monotonic()
            deadline = min(self.stun.deadline, self.agent.deadline if self.agent else now + 60, now + 60)
            readable, _, _ = select.select([0, self.socket], [], [], max(0.0, deadline - now))
            if 0 in readable:
                received = os.read(0, 65536)
                if not received:
                    return
                *lines, unread = (unread + received).split(b"\n")
                for line in lines:
                    self.hear(json.loads(line))
            if self.socket in readable:
                datagram, (host, port) = self.socket.recvfrom(2048)
                self.receive(datagram, Endpoint(host, port))
            now = time.monotonic()
            self.stun.advance(now)
            if self.agent is not None:
                self.agent.advance(now)
            self.decide()

    def send(self) -> None:
        for datagram, endpoint in self.stun.transmits() + (self.agent.transmits() if self.agent else []):
            self.socket.sendto(datagram, (endpoint.host, endpoint.port))

    def hear(self, message: dict[str, Any]) -> None:
        now = time.monotonic()
        if "credentials" in message:
            self.agent = IceAgent(
                local=self.local,
                remote=IceCredentials(*message["credentials"]),
                controlling=self.name == "a",
                tie_breaker=int.from_bytes(os.urandom(8)),
                random=os.urandom,
                now=now,
            )
            for candidate in gather_hosts(PORT):
                self.agent.add_local(candidate)
                say(candidate=format_candidate(candidate))
            self.stun.query(self.servers, now)
        elif self.agent is not None:
            self.agent.add_remote(parse_candidate(message["candidate"]), now)

    def receive(self, datagram: bytes, source: Endpoint) -> None:
        now = time.monotonic()
        if datagram.startswith(b"data from "):
            say(heard=datagram.decode())
        elif not self.stun.receive(datagram, source, now) and self.agent is not None:
            self.agent.receive(datagram, source, now)

    def decide(self) -> None:
        for answer in self.stun.events():
            if isinstance(answer, Mapped) and self.agent is not None:
                candidate = server_reflexive(answer.endpoint, Endpoint("0.0.0.0", PORT))
                self.agent.add_local(candidate)
                say(candidate=format_candidate(candidate))
        for event in self.agent.events() if self.agent else []:
            if isinstance(event, Selected):
                say(selected=[event.endpoint.host, event.remote_candidate_type, event.local_candidate_type])
                self.selected = event.endpoint
                for _ in range(20):  # a lossy path may take some
                    self.socket.sendto(f"data from {self.name}".encode(), (event.endpoint.host, event.endpoint.port))
            elif isinstance(event, Failed):
                say(failed=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["server", *where]:
            serve(where)
        case ["agent", name, *where]:
            Agent(name, where).run()
