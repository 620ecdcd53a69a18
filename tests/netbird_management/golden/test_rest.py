"""Every recorded REST call, in its order, against this management: the same status and the same JSON but for what
`differences.json` lists with a reason."""

import json
import re
from typing import Any

from google.protobuf.json_format import ParseDict

from netbird_management.operations.access_log import access_log_page
from netbird_wire.proxy_service_pb2 import AccessLog, SendAccessLogRequest, SendStatusUpdateRequest
from tests.netbird_management.golden.conftest import ACCOUNT, CORPUS, FIXTURE, HERE, Stage
from tests.netbird_management.grpc.conftest import eventually

CALLS: list[dict[str, Any]] = [json.loads(line) for line in (CORPUS / "rest.jsonl").read_text().splitlines()]
DIFFERENCES: dict[str, dict[str, Any]] = json.loads((HERE / "differences.json").read_text())["rest"]
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def _leveled(value: Any, ignored: frozenset[str]) -> Any:
    """Without moments, tokens and members that a listed difference names."""
    if isinstance(value, dict):
        return {name: _leveled(inside, ignored) for name, inside in value.items() if name not in ignored}
    if isinstance(value, list):
        return [_leveled(inside, ignored) for inside in value]
    if isinstance(value, str):
        return "nbx_" if value.startswith("nbx_") else _MOMENT.sub("moment", value)
    return value


async def _report(stage: Stage, name: str, ours: str) -> None:
    """What the scripted proxy says of a service once it has it."""
    report = FIXTURE["reports"][name]
    request = ParseDict({"service_id": ours, "account_id": ACCOUNT, **report}, SendStatusUpdateRequest())
    while ours not in stage.proxy.mappings:
        await stage.proxy.next()
    await stage.proxy.unary("SendStatusUpdate", request)


async def _logged(stage: Stage) -> None:
    entries = [ParseDict({"account_id": ACCOUNT, **entry}, AccessLog()) for entry in FIXTURE["access_log"]]
    for entry in entries:
        await stage.proxy.unary("SendAccessLog", SendAccessLogRequest(log=entry))

    async def total() -> int:
        return (await access_log_page(stage.state, ACCOUNT, page=1, page_size=1))[1]

    await eventually(total, lambda found: found == len(entries))


async def test_the_recorded_calls_are_answered_alike(stage: Stage) -> None:
    """Status and JSON of each call; ids that were made anew are followed from call to call."""
    await _logged(stage)
    ids: dict[str, str] = {}
    wrong: dict[str, object] = {}
    for call in CALLS:
        name, expected = call["name"], json.loads(call["response_text"])
        request, path = call["request_text"] or "", call["path"]
        for theirs, ours in ids.items():
            request, path = request.replace(theirs, ours), path.replace(theirs, ours)
        answer = await stage.rest.request(call["method"], path, content=request)
        found = answer.json()
        if call["method"] == "POST" and answer.status_code == 200 and "id" in expected:
            ids[expected["id"]] = found["id"]
        text = answer.text
        for theirs, ours in ids.items():
            text = text.replace(ours, theirs)
        found = json.loads(text)
        listed = DIFFERENCES.get(name, {})
        status = listed.get("status", call["status"])
        expected = listed.get("json", expected)
        ignored = frozenset(listed.get("ignored", ()))
        if (answer.status_code, _leveled(found, ignored)) != (status, _leveled(expected, ignored)):
            wrong[name] = {"ours": (answer.status_code, found), "theirs": (status, expected)}
        assert answer.text.endswith("\n")
        if name in FIXTURE["reports"] and answer.status_code == 200 and found.get("enabled"):
            await _report(stage, name, ids[expected["id"]])
    assert not wrong, json.dumps(wrong, indent=1)


def test_every_difference_is_of_a_recorded_call_and_has_a_reason() -> None:
    """The list of differences says why, and names nothing that is not there."""
    assert DIFFERENCES.keys() <= {call["name"] for call in CALLS}
    assert all(len(listed["reason"]) > 20 for listed in DIFFERENCES.values())
