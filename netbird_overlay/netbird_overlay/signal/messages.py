"""The messages that two peers exchange through a signal server, and the sealed envelopes around them.

`seal` and `open_message` convert between these types and NetBird's `signalexchange.EncryptedMessage`. A message that
opens was sealed by the holder of the sender's key for us; the box protects neither against replay nor against a sender
that is no peer of ours. The caller checks that the sender is a peer of its map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from netbird_overlay.members import IceCredentials
from netbird_wire.envelope import BadKey, Envelope, EnvelopeError, format_key, parse_key
from netbird_wire.signalexchange_pb2 import Body, EncryptedMessage

DEFAULT_PORT: Final = 51820
"""The WireGuard port of a peer that sends none, or none that is a port."""
SESSION_BYTES: Final = 5
BODY_BYTES: Final = 16 << 10
"""Maximum size of a sealed body. NetBird's agents send about 200 bytes."""
CREDENTIAL_CHARACTERS: Final = 256
"""Maximum length of a user name or password of ICE (RFC 8839, section 5.4)."""
TEXT_CHARACTERS: Final = 2048
"""Maximum length of a candidate's line, a relay's address and a version."""


class BadSignal(Exception):
    """A message is malformed, too large, or not sealed for us by the key that it names. The text quotes none of it."""


@dataclass(frozen=True, slots=True)
class Negotiation:
    """The content of an offer, and of an answer.

    Attributes:
        credentials: the sender's ICE credentials; None if it does not use ICE with us.
        listen_port: the UDP port of the sender's WireGuard.
        version: the sender's version, such as `0.60.0`.
        relay_address: the instance URL of the sender's home relay; "" while it is connected to none.
        relay_ip: the address at which the sender reaches that relay, 4 or 16 bytes; b"" if the sender does not tell.
        session_id: the 5 bytes that name the sender's ICE session; b"" without one, and without credentials.
        rosenpass: True if the sender uses Rosenpass. Only received: our own messages never announce it.
    """

    credentials: IceCredentials | None
    listen_port: int
    version: str
    relay_address: str = ""
    relay_ip: bytes = b""
    session_id: bytes = b""
    rosenpass: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """Asks for a path; the receiver replies with an `Answer`, even if nothing changes."""

    negotiation: Negotiation


@dataclass(frozen=True, slots=True)
class Answer:
    """Replies to an `Offer`."""

    negotiation: Negotiation


@dataclass(frozen=True, slots=True)
class RemoteCandidate:
    """One ICE candidate, as a line without `a=`."""

    line: str


@dataclass(frozen=True, slots=True)
class GoIdle:
    """The sender closes the path, because no data passed for a while."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A message to oneself, which shows that the signal server still delivers."""


Message = Offer | Answer | RemoteCandidate | GoIdle | Heartbeat


def seal(message: Message, own_private_key: bytes, own_public_key: bytes, remote_key: bytes) -> EncryptedMessage:
    """Seal a message for the peer with `remote_key`; the result differs at every call.

    Raises BadSignal for a key that no box can be made with.
    """
    try:
        envelope = Envelope(own_private_key, remote_key)
    except BadKey as error:
        raise BadSignal(str(error)) from error
    return seal_with(envelope, message, own_public_key, remote_key)


def seal_with(envelope: Envelope, message: Message, own_public_key: bytes, remote_key: bytes) -> EncryptedMessage:
    """Seal with an envelope that exists, which saves the derivation of its secret."""
    return EncryptedMessage(
        key=format_key(own_public_key), remoteKey=format_key(remote_key), body=envelope.seal(to_body(message))
    )


def open_message(encrypted: EncryptedMessage, own_private_key: bytes) -> tuple[bytes, Message | None]:
    """Open a message that was sealed for us.

    Returns the sender's key, and None for a message of a type that has no meaning here.
    Raises BadSignal.
    """
    sender = sender_of(encrypted)
    try:
        envelope = Envelope(own_private_key, sender)
    except BadKey as error:
        raise BadSignal(str(error)) from error
    return sender, open_with(envelope, encrypted)


def sender_of(encrypted: EncryptedMessage) -> bytes:
    """Return the key that the message names as its sender, which nothing proves yet. Raises BadSignal."""
    try:
        return parse_key(encrypted.key)
    except BadKey as error:
        raise BadSignal(str(error)) from error


def open_with(envelope: Envelope, encrypted: EncryptedMessage) -> Message | None:
    """Open a message with the envelope between us and its sender. Raises BadSignal."""
    if len(encrypted.body) > BODY_BYTES:
        raise BadSignal(f"a body has at most {BODY_BYTES} bytes, this has {len(encrypted.body)}")
    try:
        body = envelope.open(encrypted.body, Body)
    except EnvelopeError as error:
        raise BadSignal(str(error)) from error
    return from_body(body)


def to_body(message: Message) -> Body:
    match message:
        case Offer(negotiation):
            return _negotiation_body(Body.OFFER, negotiation)
        case Answer(negotiation):
            return _negotiation_body(Body.ANSWER, negotiation)
        case RemoteCandidate(line):
            return Body(type=Body.CANDIDATE, payload=line)
        case GoIdle():
            return Body(type=Body.GO_IDLE)
        case Heartbeat():
            return Body(type=Body.HEARTBEAT)


def from_body(body: Body) -> Message | None:
    """Return the message in a body; None for `MODE` and for types that are not known. Raises BadSignal."""
    match body.type:
        case Body.OFFER:
            return Offer(_negotiation(body))
        case Body.ANSWER:
            return Answer(_negotiation(body))
        case Body.CANDIDATE:
            return RemoteCandidate(_text(body.payload, "candidate"))
        case Body.GO_IDLE:
            return GoIdle()
        case Body.HEARTBEAT:
            return Heartbeat()
        case _:
            return None


def _negotiation_body(kind: Body.Type.ValueType, negotiation: Negotiation) -> Body:
    credentials = negotiation.credentials
    body = Body(
        type=kind,
        payload=f"{credentials.ufrag}:{credentials.pwd}" if credentials is not None else ":",
        wgListenPort=negotiation.listen_port,
        netBirdVersion=negotiation.version,
    )
    body.rosenpassConfig.SetInParent()  # NetBird's agents send it always, and empty without Rosenpass
    if negotiation.relay_address:
        body.relayServerAddress = negotiation.relay_address
    if negotiation.relay_ip:
        body.relayServerIP = negotiation.relay_ip
    if negotiation.session_id and credentials is not None:
        body.sessionId = negotiation.session_id
    return body


def _negotiation(body: Body) -> Negotiation:
    credentials = _credentials(body.payload)
    session = body.sessionId if credentials is not None and len(body.sessionId) == SESSION_BYTES else b""
    return Negotiation(
        credentials=credentials,
        listen_port=body.wgListenPort if 0 < body.wgListenPort < 65536 else DEFAULT_PORT,
        version=_text(body.netBirdVersion, "version"),
        relay_address=_text(body.relayServerAddress, "relay address"),
        relay_ip=body.relayServerIP if len(body.relayServerIP) in (4, 16) else b"",
        session_id=session,
        rosenpass=bool(body.rosenpassConfig.rosenpassPubKey),
    )


def _credentials(payload: str) -> IceCredentials | None:
    """Return the credentials in `<user name>:<password>`; None if a part is empty: the sender does not use ICE."""
    parts = payload.split(":")
    if len(parts) != 2:
        raise BadSignal("an offer's payload has exactly one colon")
    if not all(_is_plain(part) and len(part) <= CREDENTIAL_CHARACTERS for part in parts):
        raise BadSignal("ICE credentials are short and printable")
    return IceCredentials(*parts) if all(parts) else None


def _text(text: str, name: str) -> str:
    if len(text) > TEXT_CHARACTERS or not _is_plain(text.replace(" ", "")):
        raise BadSignal(f"the {name} is too long or not printable")
    return text


def _is_plain(text: str) -> bool:
    """True for printable ASCII without spaces, the empty string included."""
    return text.isascii() and (text.isprintable() and " " not in text)
