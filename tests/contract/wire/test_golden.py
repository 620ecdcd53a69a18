"""Our .proto files say what NetBird says: every captured message decodes, and encodes to the same bytes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import ServiceDescriptor

from netbird_wire import management_pb2, signalexchange_pb2
from netbird_wire.envelope import BadBody, Envelope, parse_key, public_key

from .golden import DIRECTORY, FILES, Golden, goldens, keys, lines, message_class, unknown_fields

CAPTURED = list(goldens())
ENCRYPTED = [golden for golden in CAPTURED if golden.outer is not None]


@pytest.mark.parametrize("golden", CAPTURED, ids=str)
def test_decodes_to_the_json_beside_it(golden: Golden) -> None:
    """Every field of a captured message has our name, our type and our enum values, and none is unknown."""
    message = message_class(golden.type).FromString(golden.data)
    assert unknown_fields(message) == []
    assert json_format.MessageToDict(message, preserving_proto_field_name=True) == golden.json


@pytest.mark.parametrize("golden", CAPTURED, ids=str)
def test_encodes_to_the_same_bytes(golden: Golden) -> None:
    """What the JSON says is, serialized by us, byte for byte what NetBird sent."""
    message = message_class(golden.type)()
    json_format.ParseDict(golden.json, message)
    assert message.SerializeToString(deterministic=True) == golden.data


@pytest.mark.parametrize("golden", ENCRYPTED, ids=str)
def test_opens_with_the_captured_keys(golden: Golden) -> None:
    """Exactly one pair of keys opens a captured body: that of its sender and its receiver."""
    assert golden.outer is not None
    private_keys = {name: parse_key(pair["priv"]) for name, pair in keys().items()}
    body, sender = body_and_sender(golden.outer)
    kind = message_class(golden.type)
    opened = {}
    for receiver, private in private_keys.items():
        try:
            opened[receiver] = Envelope(private, parse_key(sender)).open(body, kind)
        except BadBody:
            continue
    assert len(opened) == 1
    assert [message.SerializeToString(deterministic=True) for message in opened.values()] == [golden.data]


def body_and_sender(line: dict[str, Any]) -> tuple[bytes, str]:
    data = base64.b64decode(line["base64"])
    if line["type"].startswith("signalexchange."):
        offered = signalexchange_pb2.EncryptedMessage.FromString(data)
        return offered.body, offered.key
    sent = management_pb2.EncryptedMessage.FromString(data)
    return sent.body, sent.wgPubKey


def test_captured_keys_are_pairs() -> None:
    """The public half is what we compute from the private one."""
    for pair in keys().values():
        assert public_key(parse_key(pair["priv"])) == parse_key(pair["pub"])


def test_every_captured_call_is_a_method_of_ours() -> None:
    """A captured call's path, request type and response type stand in our services."""
    services: dict[str, ServiceDescriptor] = {
        service.full_name: service for file in FILES for service in file.services_by_name.values()
    }
    for line in lines():
        service_name, method_name = line["method"].removeprefix("/").split("/")
        method = services[service_name].methods_by_name[method_name]
        declared = method.input_type if line["kind"].endswith(".req") else method.output_type
        assert declared.full_name == line["type"], line["kind"]


def test_streams_are_streams() -> None:
    """Which calls stream, and in which direction: it is not in any message, and a wrong one hangs."""
    streams = {
        (service.name, method.name): (method.client_streaming, method.server_streaming)
        for file in FILES
        for service in file.services_by_name.values()
        for method in service.methods
        if method.client_streaming or method.server_streaming
    }
    assert streams == {
        ("ProxyService", "GetMappingUpdate"): (False, True),
        ("ProxyService", "SyncMappings"): (True, True),
        ("ManagementService", "Sync"): (False, True),
        ("ManagementService", "Job"): (True, True),
        ("SignalExchange", "ConnectStream"): (True, True),
    }


def test_a_peers_own_map_reads_as_ours() -> None:
    """The map that NetBird's proxy shows of itself has only names that we know."""
    text = (DIRECTORY / "debug-proxy-syncresponse.json").read_text()
    response = json_format.ParseDict(json.loads(text), management_pb2.SyncResponse())
    assert [rule.Direction for rule in response.NetworkMap.FirewallRules][:1] == [management_pb2.IN]
    assert len(response.NetworkMap.remotePeers) == 2
