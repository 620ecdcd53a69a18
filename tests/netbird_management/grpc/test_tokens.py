"""Who may call at all: tokens, the brake on guessing them, accounts, and which proxy is speaking."""

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from netbird_management.grpc.errors import Refused
from netbird_management.grpc.interceptors import FAILURE_SECONDS, FailureLimiter, peer_address
from netbird_management.operations.accounts import create_account
from netbird_management.operations.proxy_tokens import create_proxy_token, revoke_proxy_token
from netbird_wire.proxy_service_pb2 import (
    AccessLog,
    CheckLLMPolicyLimitsRequest,
    CreateProxyPeerRequest,
    RecordLLMUsageRequest,
    SendAccessLogRequest,
    SendStatusUpdateRequest,
    ValidateTunnelPeerRequest,
)
from netbird_wire.tokens import TokenKind, mint
from tests.netbird_management.grpc.conftest import FakeProxy, Lab

ASK = ValidateTunnelPeerRequest(domain="nobody.test", tunnel_ip="100.64.0.1")
Code = grpc.StatusCode


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def ask(lab: Lab, *metadata: tuple[str, str]) -> grpc.StatusCode:
    return (await code_of(lab.proxy().unary("ValidateTunnelPeer", ASK, metadata=metadata)))[0]


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Basic abc"),),
        (("authorization", "bearer nbx_x"),),
        (("authorization", "Bearer nbx_short"),),
        (("authorization", "Bearer " + mint(TokenKind.PERSONAL)),),
        (("authorization", "Bearer " + mint(TokenKind.PROXY)),),
    ],
    ids=["none", "other scheme", "scheme in lower case", "malformed", "of a person", "unknown"],
)
async def test_a_call_without_a_good_token_is_not_answered(lab: Lab, metadata: tuple[tuple[str, str], ...]) -> None:
    """Unauthenticated, and the text says nothing of the token."""
    code, details = await code_of(lab.proxy().unary("ValidateTunnelPeer", ASK, metadata=metadata))
    assert code is Code.UNAUTHENTICATED
    assert "nbx_" not in details
    assert "nbp_" not in details


async def test_the_stream_wants_a_token_too(lab: Lab) -> None:
    """A stream with a bad token ends before its first message."""
    proxy = lab.proxy(token=mint(TokenKind.PROXY))
    await proxy.introduce()
    assert (await code_of(proxy.next()))[0] is Code.UNAUTHENTICATED


async def test_revoked_and_expired_tokens_are_refused(lab: Lab) -> None:
    """A token that was good is not good any more."""
    state = lab.home.state
    token, plain = await create_proxy_token(state, name="gone", account_id=None, created_by="test")
    await revoke_proxy_token(state, None, token.id)
    assert await ask(lab, ("authorization", f"Bearer {plain}")) is Code.UNAUTHENTICATED
    _, plain = await create_proxy_token(state, name="short", account_id=None, created_by="test", expires_in=1e-6)
    assert await ask(lab, ("authorization", f"Bearer {plain}")) is Code.UNAUTHENTICATED


async def test_five_failures_and_no_more(lab: Lab) -> None:
    """The sixth wrong token is refused with another code, whatever is wrong with it."""
    codes = [await ask(lab) for _ in range(5)]
    assert set(codes) == {Code.UNAUTHENTICATED}
    for wrong in ((), (("authorization", f"Bearer {mint(TokenKind.PROXY)}"),)):
        assert await ask(lab, *wrong) is Code.RESOURCE_EXHAUSTED


async def test_promise_10_wrong_tokens_from_an_address_refuse_no_right_one_there(lab: Lab) -> None:
    """Proxies behind one load balancer or NAT share an address with whoever guesses there."""
    for _ in range(7):
        await ask(lab)
    proxy = lab.proxy()
    await proxy.connect()
    assert (await proxy.unary("ValidateTunnelPeer", ASK)).denied_reason == "service_not_found"


def test_failures_are_forgiven_with_time() -> None:
    """One more try every twelve seconds, never more than five in hand, and other addresses are not in it."""
    moment = 0.0
    limiter = FailureLimiter(lambda: moment)

    def refused(address: str) -> bool:
        try:
            limiter.failed(address)
        except Refused:
            return True
        return False

    assert [refused("192.0.2.1") for _ in range(6)] == [False] * 5 + [True]
    assert limiter.is_suspect("192.0.2.1")
    assert not refused("192.0.2.2")
    assert not any(refused("") for _ in range(10))
    assert not limiter.is_suspect("")
    moment = FAILURE_SECONDS
    assert [refused("192.0.2.1") for _ in range(2)] == [False, True]
    moment = 10_000.0
    assert [refused("192.0.2.1") for _ in range(6)] == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:50000", "192.0.2.1"),
        ("ipv6:[2001:db8::1]:50000", "2001:db8::1"),
        ("ipv6:%5B::1%5D:50000", "::1"),
        ("unix:", ""),
    ],
)
def test_addresses_of_peers(peer: str, address: str) -> None:
    """As gRPC writes them, escaped or not."""
    assert peer_address(peer) == address


REQUESTS: list[tuple[str, Callable[[str], Any]]] = [
    ("SendStatusUpdate", lambda account: SendStatusUpdateRequest(account_id=account, service_id="s")),
    ("CreateProxyPeer", lambda account: CreateProxyPeerRequest(account_id=account, service_id="s", token="t")),
    ("SendAccessLog", lambda account: SendAccessLogRequest(log=AccessLog(account_id=account))),
    (
        "SendAccessLog",
        lambda account: SendAccessLogRequest(logs=[AccessLog(account_id="mine"), AccessLog(account_id=account)]),
    ),
]


@pytest.mark.parametrize(("method", "request_for"), REQUESTS)
async def test_an_accounts_token_is_for_that_account(lab: Lab, method: str, request_for: Callable[[str], Any]) -> None:
    """Another account's id, and none, are refused before anything else is looked at."""
    state = lab.home.state
    other, _ = await create_account(state, email="other@lab.test", name="Other")
    _, plain = await create_proxy_token(state, name="theirs", account_id=other, created_by="test")
    metadata = (("authorization", f"Bearer {plain}"),)
    for account in (lab.home.account_id, ""):
        request = request_for(account)
        for log in getattr(request, "logs", ()):
            log.account_id = log.account_id.replace("mine", other)
        code, _ = await code_of(lab.proxy().unary(method, request, metadata=metadata))
        assert code is Code.PERMISSION_DENIED


async def test_the_named_proxy_must_be_connected_with_the_same_token(lab: Lab) -> None:
    """Not connected can be tried again; connected with another token cannot."""
    code, _ = await code_of(lab.proxy().unary("ValidateTunnelPeer", ASK))
    assert code is Code.UNAVAILABLE
    await lab.proxy().connect()
    assert (await lab.proxy().unary("ValidateTunnelPeer", ASK)).denied_reason == "service_not_found"
    _, plain = await create_proxy_token(lab.home.state, name="second", account_id=None, created_by="test")
    code, _ = await code_of(lab.proxy(token=plain).unary("ValidateTunnelPeer", ASK))
    assert code is Code.PERMISSION_DENIED


async def test_calls_that_are_not_there_say_so(lab: Lab) -> None:
    """Unimplemented, and only to those with a token."""
    metadata = (("authorization", f"Bearer {lab.token}"),)
    proxy = lab.proxy()
    for method, request in (
        ("CheckLLMPolicyLimits", CheckLLMPolicyLimitsRequest()),
        ("RecordLLMUsage", RecordLLMUsageRequest()),
    ):
        assert (await code_of(proxy.unary(method, request, metadata=metadata)))[0] is Code.UNIMPLEMENTED
        assert (await code_of(proxy.unary(method, request, metadata=())))[0] is Code.UNAUTHENTICATED


async def test_an_enormous_request_is_not_taken(lab: Lab) -> None:
    """A batch of logs that no proxy would send at once."""
    logs = [AccessLog(account_id=lab.home.account_id, path="x" * 60_000) for _ in range(80)]
    proxy = FakeProxy(lab.channel, lab.token)
    await proxy.connect()
    assert (await code_of(proxy.unary("SendAccessLog", SendAccessLogRequest(logs=logs))))[0] is Code.RESOURCE_EXHAUSTED
