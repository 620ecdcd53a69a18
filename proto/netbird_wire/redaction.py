"""Messages prepared for a log: secrets are replaced, and the message is written as one line of JSON.

A dump must not reveal a credential at any log level. Secret fields are listed here by message and field. The meaning of
a plugin's settings is unknown here, so all their values are replaced and their keys stay. Unknown fields are removed,
since their content is unknown. Empty fields stay empty, so that a dump still distinguishes "no token" from "a token".
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value

PLACEHOLDER: Final = "[REDACTED]"

SECRETS: Final[dict[str, frozenset[str]]] = {
    "management.ProxyMapping": frozenset({"auth_token"}),
    "management.HeaderAuth": frozenset({"hashed_value"}),
    "management.PathTargetOptions": frozenset({"custom_headers"}),
    "management.MiddlewareConfig": frozenset({"config_json"}),
    "management.Revocation": frozenset({"token_hash"}),
    "management.CreateProxyPeerRequest": frozenset({"token"}),
    "management.PasswordRequest": frozenset({"password"}),
    "management.PinRequest": frozenset({"pin"}),
    "management.HeaderAuthRequest": frozenset({"header_value"}),
    "management.AuthenticateResponse": frozenset({"session_token"}),
    "management.ValidateSessionRequest": frozenset({"session_token"}),
    "management.ValidateTunnelPeerResponse": frozenset({"session_token"}),
    "management.LoginRequest": frozenset({"setupKey", "jwtToken"}),
    "management.ProtectedHostConfig": frozenset({"password"}),
    "management.RelayConfig": frozenset({"tokenSignature"}),
    "management.FlowConfig": frozenset({"tokenSignature"}),
    # ICE's user fragment and password; a candidate's addresses go with them.
    "signalexchange.Body": frozenset({"payload"}),
}
"""String and bytes fields that are replaced. In a map, the values are replaced and the keys stay."""

LOCATIONS: Final[dict[str, frozenset[str]]] = {
    "management.PathMapping": frozenset({"target"}),
    "management.AccessLog": frozenset({"path"}),
    "management.GetOIDCURLRequest": frozenset({"redirect_url"}),
    "management.GetOIDCURLResponse": frozenset({"url"}),
    "management.FlowConfig": frozenset({"url"}),
    "management.RelayConfig": frozenset({"urls"}),
}
"""URLs and paths that are logged without user information, query and fragment."""

M = TypeVar("M", bound=Message)


def redacted(message: M) -> M:
    """A deep copy without secrets; the message itself is never changed."""
    copy = type(message)()
    copy.CopyFrom(message)
    copy.DiscardUnknownFields()
    _redact(copy)
    return copy


def one_line(message: Message) -> str:
    """The redacted message as one line of JSON, with proto field names and zero values shown.

    Never raises because of a message's content: a dump must not end an exchange. A message without a JSON form (a
    timestamp beyond the calendar) gives a line that names its type only.
    """
    try:
        return json_format.MessageToJson(
            redacted(message),
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            indent=None,
        )
    except (json_format.Error, ValueError, OverflowError):
        # The error itself may quote the value, so it is left out.
        return json.dumps({"unprintable": message.DESCRIPTOR.full_name})


def _redact(message: Message) -> None:
    if isinstance(message, Struct):
        _redact_settings(message)
        return
    name = message.DESCRIPTOR.full_name
    secret = SECRETS.get(name, frozenset())
    location = LOCATIONS.get(name, frozenset())
    for field, value in message.ListFields():
        if field.name in secret:
            _replace(message, field, value)
        elif field.name in location:
            _cut(message, field, value)
        else:
            for child in _children(field, value):
                _redact(child)


def _children(field: FieldDescriptor, value: Any) -> list[Message]:
    kind = field.message_type
    if kind is None:
        return []
    if kind.GetOptions().map_entry:
        return [item for item in value.values() if isinstance(item, Message)]
    return list(value) if field.is_repeated else [value]


def _replace(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.message_type is not None:
        for key in value:
            value[key] = PLACEHOLDER
    elif value:
        setattr(message, field.name, PLACEHOLDER.encode() if field.type == field.TYPE_BYTES else PLACEHOLDER)


def _cut(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.is_repeated:
        value[:] = [_location(item) for item in value]
    else:
        setattr(message, field.name, _location(value))


_SCHEME: Final = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//")


def _location(text: str) -> str:
    # urlsplit raises on some texts, and secrets must be removed from those too. An @ that may end user information
    # counts as if it did.
    head, mark, tail = _before(text)
    if head.startswith("/") and not head.startswith("//"):
        return head + mark
    scheme = _SCHEME.match(head)
    start = scheme.end() if scheme else 0
    authority_and_path = head[start:]
    if "@" in tail and "/" not in authority_and_path:
        return head[:start] + PLACEHOLDER
    at = authority_and_path.rfind("@")
    if at >= 0:
        authority_and_path = PLACEHOLDER + authority_and_path[at:]
    return head[:start] + authority_and_path + mark


def _before(text: str) -> tuple[str, str, str]:
    """Split a text before its query or fragment: the part before, the text to show instead, and the removed part."""
    for position, character in enumerate(text):
        if character in "?#":
            return text[:position], character + PLACEHOLDER, text[position:]
    return text, "", ""


def _redact_settings(settings: Struct) -> None:
    for value in settings.fields.values():
        _redact_value(value)


def _redact_value(value: Value) -> None:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        _redact_settings(value.struct_value)
    elif kind == "list_value":
        for item in value.list_value.values:
            _redact_value(item)
    elif (kind == "string_value" and value.string_value) or kind == "number_value":
        # Numbers are replaced too: a PIN is a number.
        value.string_value = PLACEHOLDER
