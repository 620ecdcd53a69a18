"""Every recorded probe of the proxies' service against this one: the same code, the same message but for moments and
tokens, which are minted anew and compared by what they claim."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from netbird_management.store.state import State
from netbird_wire import proxy_service_pb2 as wire
from netbird_wire.tokens import TokenKind, mint
from tests.netbird_management.golden.conftest import CORPUS, FIXTURE, HERE, Stage, staged
from tests.netbird_management.grpc.conftest import SECONDS, soon

PROBES: list[dict[str, Any]] = [json.loads(line) for line in (CORPUS / "rpc_probe.jsonl").read_text().splitlines()]
DIFFERENCES: dict[str, dict[str, Any]] = json.loads((HERE / "differences.json").read_text())["rpc"]
LIMITER = [probe for probe in PROBES if probe["label"].startswith("limiter")]
ADDITIVE = frozenset(
    {"principal", "required_group_ids", "required_group_names", "management_extensions", "direct_upstream_11"}
)
"""Extension fields, which other readers skip."""
TOKENS = {"no token": None, "malformed token": "Bearer junk", "unknown token": "Bearer nbx_junk"}


def _leveled(value: Any, name: str = "") -> Any:
    """Without what is made anew each time: keys and one-time tokens; of session tokens only the claims stay."""
    if isinstance(value, dict):
        return {key: _leveled(inside, key) for key, inside in value.items()}
    if isinstance(value, list):
        return [_leveled(inside) for inside in value]
    if name in ("auth_token", "session_key", "hashed_value", "url"):
        return bool(value)
    if name == "session_token" and value.count(".") == 2:
        claims = json.loads(base64.urlsafe_b64decode(value.split(".")[1] + "=="))
        return {key: claim for key, claim in claims.items() if key not in ("iat", "exp", "nbf")}
    return value


async def _answer(stage: Stage, probe: dict[str, Any]) -> dict[str, Any]:
    """What the probe brings here, in the form of the record."""
    label, kind = probe["label"], probe["msg"]
    metadata = (("authorization", f"Bearer {stage.proxy.token}"),)
    if label in TOKENS or label.startswith("limiter"):
        given = TOKENS.get(label)
        metadata = (("authorization", given),) if given is not None else ()
    try:
        if label == "sync first=ack":
            call = stage.proxy.stub.SyncMappings(metadata=metadata)
            await call.write(wire.SyncMappingsRequest(ack=wire.SyncMappingsAck()))
            await soon(call.read())
            return {"code": (await call.code()).name, "details": await call.details()}
        request = ParseDict(probe["request"], getattr(wire, kind)())
        if label == "vs password token":
            request.session_token = await _password_token(stage, metadata)
        if kind == "GetMappingUpdateRequest":
            return {"ok": await _stream(stage.proxy.stub.GetMappingUpdate(request, metadata=metadata))}
        method = getattr(stage.proxy.stub, kind.removesuffix("Request"))
        answer = await method(request, metadata=metadata, timeout=SECONDS)
        return {"ok": MessageToDict(answer, preserving_proto_field_name=True)}
    except grpc.aio.AioRpcError as error:
        return {"code": error.code().name, "details": error.details()}


async def _password_token(stage: Stage, metadata: Any) -> str:
    """The recorded one was signed by a key that is gone."""
    given = next(probe["request"] for probe in PROBES if probe["label"] == "auth pw ok")
    request = ParseDict({**given, "id": stage.ids[given["id"]]}, wire.AuthenticateRequest())
    answer = await stage.proxy.stub.Authenticate(request, metadata=metadata, timeout=SECONDS)
    return str(answer.session_token)


async def _stream(call: Any) -> list[dict[str, Any]]:
    """The messages of the first snapshot."""
    found: list[dict[str, Any]] = []
    while not found or not found[-1].get("initial_sync_complete"):
        message = await soon(call.read())
        if message is grpc.aio.EOF:
            raise AssertionError(await call.details())
        found.append(MessageToDict(message, preserving_proto_field_name=True))
    call.cancel()
    return found


@pytest.fixture
async def stage(state: State, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(state, tmp_path) as opened:
        for service in FIXTURE["services_of_the_probe"]:
            answer = await opened.rest.post("/api/reverse-proxies/services", json=service["body"])
            assert answer.status_code == 200, answer.text
            opened.ids[service["id"]] = answer.json()["id"]
        yield opened


async def test_the_recorded_probes_are_answered_alike(stage: Stage) -> None:
    """Code, message and details of each probe but the limiter's."""
    wrong: dict[str, object] = {}
    for probe in PROBES:
        if probe in LIMITER:
            continue
        listed = DIFFERENCES.get(probe["label"], {})
        text = json.dumps(probe)
        for theirs, ours in stage.ids.items():
            text = text.replace(theirs, ours)
        asked = json.loads(text)
        expected: dict[str, Any] = {name: asked[name] for name in ("ok", "code", "details") if name in asked}
        expected |= listed.get("ours", {})
        found = await _answer(stage, asked)
        ignored = ADDITIVE.union(listed.get("ignored", ()))
        left, right = _without(_leveled(found), ignored), _without(_leveled(expected), ignored)
        if left != right:
            wrong[probe["label"]] = {"ours": left, "theirs": right}
    assert not wrong, json.dumps(wrong, indent=1)


def _without(value: Any, names: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(inside, names) for key, inside in value.items() if key not in names}
    if isinstance(value, list):
        return [_without(inside, names) for inside in value]
    return value


async def test_bad_tokens_are_counted(stage: Stage) -> None:
    """After five bad tokens an address is told to wait before its token is looked at."""
    for _ in range(5):
        assert (await _answer(stage, {"label": "no token", "msg": "ValidateSessionRequest", "request": {}}))[
            "code"
        ] == "UNAUTHENTICATED"
    for probe in LIMITER:
        found = await _answer(stage, probe)
        assert (found["code"], found["details"]) == (probe["code"], probe["details"])


async def test_an_unknown_token_of_the_right_form_is_refused_too(stage: Stage) -> None:
    """The recorded "unknown" token was malformed; one that is not has the same code."""
    metadata = (("authorization", f"Bearer {mint(TokenKind.PROXY)}"),)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stage.proxy.stub.ValidateSession(wire.ValidateSessionRequest(), metadata=metadata, timeout=SECONDS)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_every_difference_is_of_a_recorded_probe_and_has_a_reason() -> None:
    """The list of differences says why, and names nothing that is not there."""
    assert DIFFERENCES.keys() <= {probe["label"] for probe in PROBES}
    assert all(len(listed["reason"]) > 20 for listed in DIFFERENCES.values())
