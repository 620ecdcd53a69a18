"""A dump of a message gives no secret away, and says what it can."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from netbird_wire import management_pb2, signalexchange_pb2
from netbird_wire.proxy_service_pb2 import (
    AccessLog,
    AuthenticateRequest,
    AuthenticateResponse,
    Authentication,
    CreateProxyPeerRequest,
    GetOIDCURLRequest,
    GetOIDCURLResponse,
    HeaderAuth,
    HeaderAuthRequest,
    MiddlewareConfig,
    PasswordRequest,
    PathMapping,
    PathTargetOptions,
    PinRequest,
    ProxyMapping,
    Revocation,
    SyncMappingsResponse,
    ValidateSessionRequest,
    ValidateTunnelPeerResponse,
)
from netbird_wire.redaction import LOCATIONS, PLACEHOLDER, SECRETS, one_line, redacted

from .golden import all_types, goldens, message_class

SECRET = "hunter2-do-not-log"


def settings() -> Struct:
    found = Struct()
    found.update(
        {
            "key": SECRET,
            "pin": 4711,
            "nested": {"list": [SECRET, {"deep": SECRET}, [SECRET, 4711]], "on": True, "off": None, "empty": ""},
        }
    )
    return found


def mapping() -> ProxyMapping:
    options = PathTargetOptions(custom_headers={"X-Api-Key": SECRET})
    inner = MiddlewareConfig(id="geo", config_json=SECRET.encode()).SerializeToString()
    options.MergeFromString(bytes([11 << 3 | 2, len(inner)]) + inner)
    found = ProxyMapping(
        id="svc-1",
        domain="app.example.com",
        auth_token=SECRET,
        auth=Authentication(
            session_key="cHVibGlj", password=True, header_auths=[HeaderAuth(header="X-Key", hashed_value=SECRET)]
        ),
        path=[PathMapping(path="/", target=f"http://me:{SECRET}@10.0.0.1/?token={SECRET}", options=options)],
    )
    found.plugin_settings["shop"].CopyFrom(settings())
    found.path[0].plugin_settings["shop"].CopyFrom(settings())
    return found


MESSAGES: list[Message] = [
    mapping(),
    SyncMappingsResponse(mapping=[mapping(), mapping()], revocations=[Revocation(token_hash=SECRET.encode())]),
    AuthenticateRequest(id="svc-1", password=PasswordRequest(password=SECRET)),
    AuthenticateRequest(id="svc-1", pin=PinRequest(pin=SECRET)),
    AuthenticateRequest(id="svc-1", header_auth=HeaderAuthRequest(header_name="X-Key", header_value=SECRET)),
    AuthenticateResponse(success=True, session_token=SECRET),
    CreateProxyPeerRequest(service_id="svc-1", token=SECRET, wireguard_public_key="cHVibGlj"),
    ValidateSessionRequest(domain="app.example.com", session_token=SECRET),
    ValidateTunnelPeerResponse(valid=True, session_token=SECRET),
    GetOIDCURLRequest(redirect_url=f"https://app.example.com/return?f={SECRET}"),
    GetOIDCURLResponse(url=f"https://idp.example.com/auth?state={SECRET}#{SECRET}"),
    AccessLog(path=f"/a?{SECRET}"),
    management_pb2.LoginRequest(setupKey=SECRET, jwtToken=SECRET),
    management_pb2.NetbirdConfig(
        turns=[management_pb2.ProtectedHostConfig(user="u", password=SECRET)],
        relay=management_pb2.RelayConfig(urls=[f"rel://{SECRET}@host", "rel://host"], tokenSignature=SECRET),
        flow=management_pb2.FlowConfig(url=f"https://host/?k={SECRET}", tokenSignature=SECRET),
    ),
    signalexchange_pb2.Body(payload=f"ufrag:{SECRET}"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.DESCRIPTOR.name)
def test_no_secret_is_shown_and_the_message_is_untouched(message: Message) -> None:
    """Neither the dump, nor the copy's own text forms or bytes hold the secret; the original still does."""
    before = message.SerializeToString(deterministic=True)
    line = one_line(message)
    copy = redacted(message)
    for shown in (line, str(copy), repr(copy), copy.SerializeToString().decode("latin-1")):
        assert SECRET not in shown
        assert "4711" not in shown
    assert "\n" not in line
    assert message.SerializeToString(deterministic=True) == before
    assert SECRET.encode() in before


def test_what_a_dump_still_says() -> None:
    """Ids, names, keys and public halves stay, so that it is good for something."""
    shown = json.loads(one_line(mapping()))
    assert (shown["id"], shown["domain"], shown["auth_token"]) == ("svc-1", "app.example.com", PLACEHOLDER)
    assert shown["auth"]["session_key"] == "cHVibGlj"
    assert shown["auth"]["header_auths"] == [{"header": "X-Key", "hashed_value": PLACEHOLDER}]
    assert shown["path"][0]["target"] == f"http://{PLACEHOLDER}@10.0.0.1/?{PLACEHOLDER}"
    assert shown["path"][0]["options"]["custom_headers"] == {"X-Api-Key": PLACEHOLDER}
    assert shown["plugin_settings"]["shop"] == {
        "key": PLACEHOLDER,
        "pin": PLACEHOLDER,
        "nested": {
            "list": [PLACEHOLDER, {"deep": PLACEHOLDER}, [PLACEHOLDER, PLACEHOLDER]],
            "on": True,
            "off": None,
            "empty": "",
        },
    }


def test_empty_fields_stay_empty() -> None:
    """No placeholder where there was nothing, and zero values are shown under their proto names."""
    shown = json.loads(one_line(ProxyMapping(auth=Authentication(header_auths=[HeaderAuth(header="X-Key")]))))
    assert shown["auth_token"] == ""
    assert shown["auth"]["header_auths"] == [{"header": "X-Key", "hashed_value": ""}]
    assert shown["private"] is False
    assert shown["type"] == "UPDATE_TYPE_CREATED"


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("http://10.0.0.1:80/a/b", "http://10.0.0.1:80/a/b"),
        ("10.0.0.1:5432", "10.0.0.1:5432"),
        ("[fd00::1]:5432", "[fd00::1]:5432"),
        ("http://[bad/a", "http://[bad/a"),
        (f"http://me:{SECRET}@h/", f"http://{PLACEHOLDER}@h/"),
        (f"http://me:{SECRET}/@h/", f"http://{PLACEHOLDER}@h/"),
        (f"http://me:{SECRET}?@h/", f"http://{PLACEHOLDER}"),
        (f"http://{SECRET}?x@h", f"http://{PLACEHOLDER}"),
        (f"//me:{SECRET}@h", f"//{PLACEHOLDER}@h"),
        (f"me:{SECRET}@h:1", f"{PLACEHOLDER}@h:1"),
        (f"http://h/#{SECRET}", f"http://h/#{PLACEHOLDER}"),
        (f"http://h/?a@b={SECRET}", f"http://h/?{PLACEHOLDER}"),
    ],
)
def test_where_a_target_leads_stays(target: str, shown: str) -> None:
    """Scheme, host, port and path stay; user information, query and fragment go, from malformed ones too."""
    assert redacted(PathMapping(target=target)).target == shown


def test_a_path_with_an_at_stays() -> None:
    """A logged path has no user information."""
    assert redacted(AccessLog(path="/@alice/a@b?x")).path == f"/@alice/a@b?{PLACEHOLDER}"


def test_what_has_no_json_form_still_gives_a_line() -> None:
    """A dump never raises over what it was sent, and the line quotes nothing of it."""
    message = AccessLog(path=f"/{SECRET}")
    message.timestamp.seconds = 10**18
    assert json.loads(one_line(message)) == {"unprintable": "management.AccessLog"}
    endless = ProxyMapping()
    endless.plugin_settings["p"].fields["n"].number_value = float("nan")
    assert json.loads(one_line(endless))["plugin_settings"]["p"] == {"n": PLACEHOLDER}


@pytest.mark.parametrize("golden", list(goldens()), ids=str)
def test_captured_messages_can_be_dumped(golden: Any) -> None:
    """Every captured message gives one line of JSON."""
    line = one_line(message_class(golden.type).FromString(golden.data))
    assert "unprintable" not in json.loads(line)


def secret_fields() -> list[FieldDescriptor]:
    return [field for kind in all_types() for field in kind.fields if field.name in SECRETS.get(kind.full_name, ())]


@given(st.text(min_size=8, alphabet="0123456789"))
def test_every_listed_field_is_replaced_whatever_is_in_it(secret: str) -> None:
    """For each field of the list: any value goes."""
    for field in secret_fields():
        message = message_class(field.full_name.rpartition(".")[0])()
        if field.message_type is not None:
            getattr(message, field.name)["k"] = secret
        else:
            setattr(message, field.name, secret.encode() if field.type == field.TYPE_BYTES else secret)
        assert secret not in str(redacted(message))


def test_the_lists_name_only_what_exists() -> None:
    """A renamed field cannot slip out of the lists."""
    fields = {(kind.full_name, field.name) for kind in all_types() for field in kind.fields}
    listed = {(kind, name) for table in (SECRETS, LOCATIONS) for kind, names in table.items() for name in names}
    assert listed <= fields


HARMLESS = {
    "management.Authentication.session_key",  # public
    "management.Authentication.password",  # whether there is one
    "management.Authentication.pin",
    "management.AuthenticateRequest.password",  # messages, redacted inside
    "management.AuthenticateRequest.pin",
    "management.AuthenticateRequest.header_auth",
    "management.Authentication.header_auths",
    "management.HeaderAuthRequest.header_name",
    "management.CreateProxyPeerRequest.wireguard_public_key",
    "management.EncryptedMessage.wgPubKey",
    "management.ServerKeyResponse.key",
    "management.LoginRequest.peerKeys",
    "management.PeerKeys.sshPubKey",
    "management.PeerKeys.wgPubKey",
    "management.RemotePeerConfig.wgPubKey",
    "management.ValidateTunnelPeerRequest.peer_key",
    "management.SSHConfig.sshPubKey",
    "management.JWTConfig.keysLocation",
    "management.JWTConfig.maxTokenAge",
    "management.RelayConfig.tokenPayload",  # a time
    "management.FlowConfig.tokenPayload",
    "management.SSHConfig.jwtConfig",
    "management.Flags.disableSSHAuth",
    "management.CustomZone.NonAuthoritative",
    "management.NetworkMap.sshAuth",
    "management.SSHAuth.AuthorizedUsers",  # hashes of user ids, told to every peer
    "management.Revalidation.peer_key",  # public
    "management.AccessLog.auth_mechanism",
    "management.AccessLog.auth_success",
    "management.ProxyMapping.auth",
    "signalexchange.EncryptedMessage.key",
    "signalexchange.EncryptedMessage.remoteKey",
    "signalexchange.RosenpassConfig.rosenpassPubKey",
}


def test_a_new_field_that_sounds_secret_must_be_judged() -> None:
    """Whoever adds a token, key, password, hash or secret says here or in the list which of the two it is."""
    words = ("token", "key", "password", "hash", "secret", "auth", "credential", "jwt")
    sounding = {
        field.full_name
        for kind in all_types()
        for field in kind.fields
        if field.name == "pin" or any(word in field.name.lower() for word in words)
    }
    listed = {f"{kind}.{name}" for kind, names in SECRETS.items() for name in names}
    assert sounding - listed - HARMLESS == set()
