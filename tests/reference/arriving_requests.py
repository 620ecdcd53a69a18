"""The oracle of `netbird_http`'s `Reader`: a parser in C and the rules in Python, as the listener once had them."""

from __future__ import annotations

from typing import Any

import httptools

from netbird_proxy.api.headers import RawHeader
from tests.reference.head_rules import KNOWN, FramingField, HeadRefused, check_framing_fields, judge_target, learn

Event = tuple[Any, ...]
"""("head", facts…), ("body", bytes), ("end", trailers), ("raw", bytes) or ("refused", status, reason)."""


class OldReader:
    """Reads the requests of one connection. Limits are the listener's, and not part of it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._parser: Any = httptools.HttpRequestParser(self)
        self._url = b""
        self._fields: list[RawHeader] = []
        self._framing: list[FramingField] = []
        self._reading = False
        self._keep_alive = True
        self._over = False
        self._raw = False
        self._refusal: HeadRefused | None = None

    def feed(self, data: bytes) -> None:
        if self._raw:
            self._append_piece("raw", data)
        elif not self._over:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._raw = True
                if behind := data[upgrade.args[0] :]:
                    self._append_piece("raw", behind)
            except httptools.HttpParserError as error:
                if not self._over:
                    self._over = True
                    refusal = self._refusal or self._why(error)
                    self.events.append(("refused", refusal.status, refusal.reason))

    def _append_piece(self, kind: str, piece: bytes) -> None:
        if self.events and self.events[-1][0] == kind:
            piece = self.events.pop()[1] + piece
        self.events.append((kind, piece))

    def _why(self, error: httptools.HttpParserError) -> HeadRefused:
        assert not isinstance(error, httptools.HttpParserCallbackError), error.__context__
        return HeadRefused("malformed_body" if self._reading else "malformed")

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        lower, kind = KNOWN.get(name) or learn(name)
        if kind:
            self._framing.append((kind, value))
        self._fields.append((lower, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        fields, self._fields = self._fields, []
        framing, self._framing = self._framing, []
        url, self._url = self._url, b""
        try:
            if self._over:
                raise HeadRefused("closing")
            version = parser.get_http_version()
            if version not in ("1.1", "1.0"):
                raise HeadRefused("version", 505)
            host, length, expects = check_framing_fields(version, framing)
            upgrade = parser.should_upgrade()
            if upgrade and length:
                raise HeadRefused("upgrade_body")
            path, query = judge_target(parser.get_method(), url, host)
        except HeadRefused as refused:
            self._refusal = refused
            raise
        self._keep_alive = parser.should_keep_alive() and not upgrade
        self._reading = True
        method = parser.get_method().decode("ascii")
        flags = (version == "1.1", self._keep_alive, length != 0, expects, upgrade and version == "1.1")
        self.events.append(("head", method, path, query, fields, flags))

    def on_body(self, body: bytes) -> None:
        self._append_piece("body", body)

    def on_message_complete(self) -> None:
        if not self._reading:
            return
        trailers, self._fields, self._framing = self._fields, [], []
        self._reading = False
        if self.events[-1][0] == "body" or self.events[-1][-1][2]:
            self.events.append(("end", trailers))
        self._over = not self._keep_alive


def old_events(pieces: list[bytes]) -> list[Event]:
    """Return what the listener once read in these pieces."""
    reader = OldReader()
    for piece in pieces:
        reader.feed(piece)
    return reader.events
