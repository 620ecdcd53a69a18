"""The sans-IO WebSocket: any stream of frames, split anywhere, gives the messages that the library alone gives."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.protocol import OPEN, Protocol
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from netbird_wire.websocket import ClientWebSocket, ServerWebSocket, refusal

MAX = 200
sizes = st.integers(0, 140) | st.integers(MAX - 2, MAX + 2)
payloads = sizes.map(lambda size: bytes(index % 251 for index in range(size)))
opcodes = st.sampled_from([Opcode.BINARY] * 6 + [Opcode.CONT, Opcode.CONT, Opcode.PING, Opcode.PONG, Opcode.TEXT])
frames = st.builds(Frame, opcodes, payloads, st.sampled_from([True, True, True, False]))
closes = st.sampled_from([Frame(Opcode.CLOSE, b""), Frame(Opcode.CLOSE, Close(CloseCode.GOING_AWAY, "").serialize())])


def pair() -> tuple[ClientWebSocket, ServerWebSocket]:
    """Both ends after the handshake."""
    client = ClientWebSocket("relay.example", 80, "/relay", secure=False, max_message_bytes=MAX)
    server = ServerWebSocket(MAX, lambda request: None)
    server.receive(client.to_send())
    assert server.opened
    client.receive(server.to_send())
    assert client.opened
    return client, server


def serialized(frame: Frame, *, mask: bool) -> bytes:
    """The frame's bytes, also of frames that the library would not send."""
    unchecked = Frame(frame.opcode, frame.data, frame.fin)
    unchecked.check = lambda: None  # type: ignore[method-assign]
    return unchecked.serialize(mask=mask)


def by_library(protocol: Protocol, data: bytes) -> list[bytes]:
    """The messages up to the first failure, with the library only."""
    protocol.receive_data(data)
    messages: list[bytes] = []
    fragments: bytearray | None = None
    for frame in protocol.events_received():
        assert isinstance(frame, Frame)
        if frame.opcode is Opcode.TEXT:
            break  # the library alone would accept it
        if frame.opcode is Opcode.BINARY:
            fragments = bytearray(frame.data)
        elif frame.opcode is Opcode.CONT and fragments is not None:
            fragments += frame.data
        if frame.opcode in (Opcode.BINARY, Opcode.CONT) and frame.fin and fragments is not None:
            messages.append(bytes(fragments))
            fragments = None
    return messages


@pytest.mark.parametrize("at_server", [True, False])
@given(stream=st.lists(frames, max_size=12), close=st.none() | closes, cuts=st.lists(st.integers(0, 2000), max_size=6))
def test_any_frames_in_any_pieces_give_the_librarys_messages(
    at_server: bool, stream: list[Frame], close: Frame | None, cuts: list[int]
) -> None:
    data = b"".join(serialized(frame, mask=at_server) for frame in [*stream, *([close] if close else [])])
    client, server = pair()
    end = server if at_server else client
    library = (
        ServerProtocol(state=OPEN, max_size=MAX)
        if at_server
        else ClientProtocol(parse_uri("ws://relay.example/relay"), state=OPEN, max_size=MAX)
    )

    messages: list[bytes] = []
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, stop in pairwise(edges):
        messages += end.receive(data[start:stop])

    assert messages == by_library(library, data)
    texts = any(frame.opcode is Opcode.TEXT for frame in stream)
    if not texts:
        assert bool(end.ended) is (library.state is not OPEN)


@given(st.lists(payloads.filter(lambda payload: len(payload) <= MAX), max_size=20))
def test_messages_arrive_as_they_were_sent_in_both_directions(messages: list[bytes]) -> None:
    client, server = pair()
    assert server.receive(client.frames(messages)) == messages
    assert client.receive(server.frames(messages)) == messages


@given(st.binary(min_size=1, max_size=500))
def test_any_bytes_after_the_handshake_end_the_connection_at_worst(data: bytes) -> None:
    client, server = pair()
    client.receive(data)
    server.receive(data)
    assert server.receive(b"") == []


@given(st.binary(max_size=300), st.sampled_from([b"", b"\r\n\r\n"]))
def test_any_bytes_as_a_handshake_end_the_connection_at_worst(data: bytes, end: bytes) -> None:
    client = ClientWebSocket("relay.example", 80, "/relay", secure=False, max_message_bytes=MAX)
    server = ServerWebSocket(MAX, lambda request: None)
    for ending in (client, server):
        ending.receive(data + end)
        assert not ending.opened
        assert not end or ending.ended


def test_two_messages_have_different_masks() -> None:
    client, _ = pair()
    first, second = client.frames([b"datagram"]), client.frames([b"datagram"])
    assert first[2:6] != second[2:6]
    both = client.frames([b"datagram", b"datagram"])
    assert both[2:6] != both[16:20]


def test_a_ping_between_messages_is_answered() -> None:
    client, server = pair()
    data = client.frames([b"first"]) + serialized(Frame(Opcode.PING, b"?"), mask=True) + client.frames([b"second"])
    assert server.receive(data) == [b"first", b"second"]
    assert server.to_send() == b"\x8a\x01?"


def test_messages_before_a_close_are_delivered_and_the_close_is_answered() -> None:
    client, server = pair()
    data = client.frames([b"last"])
    client.close()
    assert server.receive(data + client.to_send() + client.frames([b"late"])) == [b"last"]
    assert server.ended
    assert server.to_send().startswith(b"\x88")


def test_an_oversized_frame_ends_the_connection_before_it_is_read() -> None:
    client, server = pair()
    assert server.receive(client.frames([bytes(MAX + 1)])[:8]) == []
    assert server.ended
    assert server.to_send()[2:4] == CloseCode.MESSAGE_TOO_BIG.to_bytes(2, "big")


def test_a_text_message_ends_the_connection() -> None:
    client, server = pair()
    assert server.receive(serialized(Frame(Opcode.TEXT, b"hello"), mask=True) + client.frames([b"late"])) == []
    assert server.ended


def test_unmasked_frames_of_a_client_end_the_connection() -> None:
    _, server = pair()
    assert server.receive(b"\x82\x01a") == []
    assert server.ended


def test_a_handshake_without_end_is_refused() -> None:
    server = ServerWebSocket(MAX, lambda request: None)
    for _ in range(20):
        server.receive(b"GET /relay HTTP/1.1\r\nHost: " + b"a" * 1000)
    assert server.ended
    assert not server.opened


def test_a_request_may_be_refused_with_a_page() -> None:
    client = ClientWebSocket("relay.example", 80, "/else", secure=False, max_message_bytes=MAX)
    server = ServerWebSocket(MAX, lambda request: refusal(404, "Not Found", "nothing here\n"))
    server.receive(client.to_send())
    answer = server.to_send()
    assert server.ended
    assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert answer.endswith(b"nothing here\n")
    client.receive(answer)
    assert "404" in client.ended
