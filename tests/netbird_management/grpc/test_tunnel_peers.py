"""Who may use a service over the tunnel: each check in its turn, and what each denial tells."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from netbird_management import Decision, Deny, Peer, PeerGate, PluginInfo, hookimpl
from netbird_management.model.accounts import Role
from netbird_management.model.services import AuthConfig, BearerAuth
from netbird_management.operations.accounts import create_account
from netbird_management.operations.peers import get_peer
from netbird_management.operations.proxy_tokens import create_proxy_token
from netbird_management.operations.users import update_user
from netbird_management.secrets.session_tokens import read_session_token
from netbird_management.store.models import UserRow
from netbird_wire.proxy_service_pb2 import ValidateTunnelPeerRequest, ValidateTunnelPeerResponse
from tests.netbird_management.conftest import Home, claims_in
from tests.netbird_management.grpc.conftest import Lab, eventually, lab_for


async def ask(
    lab: Lab, ip: str, domain: str = "app.px.test", token: str = "", key: str = ""
) -> ValidateTunnelPeerResponse:
    """As a proxy that does not say which it is, so that none needs to be connected."""
    metadata = (("authorization", f"Bearer {token or lab.token}"),)
    request = ValidateTunnelPeerRequest(tunnel_ip=ip, domain=domain, peer_key=key)
    answer = await lab.proxy().unary("ValidateTunnelPeer", request, metadata=metadata)
    assert isinstance(answer, ValidateTunnelPeerResponse)
    return answer


def says_nothing(answer: ValidateTunnelPeerResponse, reason: str) -> bool:
    return answer == ValidateTunnelPeerResponse(denied_reason=reason)


async def test_denials_before_the_peer_is_known_tell_nothing(lab: Lab) -> None:
    """In this order: nothing asked, no address, no such service, no such peer."""
    assert says_nothing(await ask(lab, "", ""), "missing domain or tunnel_ip")
    assert says_nothing(await ask(lab, "100.64.0.1", ""), "missing domain or tunnel_ip")
    assert says_nothing(await ask(lab, "100.64.0", "nobody.test"), "invalid_tunnel_ip")
    assert says_nothing(await ask(lab, "100.64.0.1", "nobody.test"), "service_not_found")
    assert says_nothing(await ask(lab, "100.64.0.1", "no domain at all"), "service_not_found")
    await lab.service("app", await lab.group("g"))
    assert says_nothing(await ask(lab, "192.0.2.1"), "peer_not_found")


async def test_an_account_is_told_nothing_of_anothers_services(lab: Lab) -> None:
    """A token of another account gets an error, not an answer."""
    await lab.service("app", await lab.group("g"))
    other, _ = await create_account(lab.home.state, email="other@lab.test", name="Other")
    _, token = await create_proxy_token(lab.home.state, name="t", account_id=other, created_by="test")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(lab, "192.0.2.1", token=token)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_peer_of_another_account_is_nobody_here(lab: Lab) -> None:
    """The address is looked for in the service's account alone."""
    phone = await lab.stock_peer("phone")
    other, _ = await create_account(lab.home.state, email="other@lab.test", name="Other")
    theirs = replace(lab, home=Home(lab.home.state, other, lab.home.owner))
    await theirs.service("app", await theirs.group("g"))
    assert says_nothing(await ask(lab, str(phone.ip)), "peer_not_found")


async def test_promise_1_an_answer_is_about_the_peer_that_the_connection_is_of(lab: Lab) -> None:
    """The address of another peer than the one that the proxy names gives nothing away, whose ever it is now."""
    phone, laptop = await lab.stock_peer("phone"), await lab.stock_peer("laptop")
    await lab.service("app", await lab.group("g", phone, laptop))
    assert (await ask(lab, str(phone.ip), key=phone.key)).valid
    assert (await ask(lab, str(phone.ip))).valid  # NetBird's proxy names none
    assert says_nothing(await ask(lab, str(phone.ip), key=laptop.key), "peer_not_found")


async def test_a_member_without_a_user(lab: Lab) -> None:
    """The peer stands for itself: its id and its name, and the principal tells them apart from a user's."""
    phone = await lab.stock_peer("phone")
    service = await lab.service("app", await lab.group("g", phone))
    for spelling in (str(phone.ip), f"::ffff:{phone.ip}", str(phone.ipv6)):
        answer = await ask(lab, spelling)
        assert (answer.valid, answer.user_id, answer.user_email) == (True, phone.id, "phone")
        principal = answer.principal
        assert (principal.user_id, principal.peer_id, principal.peer_name) == ("", phone.id, "phone")
    session = read_session_token(answer.session_token, service.session_public_key, "app.px.test")
    assert session is not None
    assert (session.subject, session.method) == (phone.id, "oidc")
    assert claims_in(answer.session_token)["email"] == "phone"


async def test_the_gate_is_of_the_peers_groups(lab: Lab) -> None:
    """A user's other peer is not a member for its owner's sake."""
    alice = await lab.user("alice@lab.test")
    member, other = await lab.stock_peer("member", alice), await lab.stock_peer("other", alice)
    await lab.service("app", await lab.group("g", member))
    assert (await ask(lab, str(member.ip))).valid
    denied = await ask(lab, str(other.ip))
    assert (denied.denied_reason, denied.user_id, denied.session_token) == ("not_in_group", alice.id, "")
    assert list(denied.peer_group_names) == ["All"]
    assert (list(denied.required_group_names), len(denied.required_group_ids)) == (["g"], 1)


async def test_a_user_who_may_not_come_in_brings_nobody_in(lab: Lab) -> None:
    """Waiting, blocked: in this order, as who waits is blocked too; the denial says who it is, without a token."""
    alice = await lab.user("alice@lab.test")
    phone = await lab.stock_peer("phone", alice)
    await lab.service("app", await lab.group("g", phone))
    await update_user(lab.home.state, lab.home.account_id, alice.id, role=Role.USER, auto_groups=[], blocked=True)
    denied = await ask(lab, str(phone.ip))
    assert (denied.valid, denied.denied_reason, denied.user_email) == (False, "user_blocked", "alice@lab.test")
    assert not denied.session_token
    assert not denied.required_group_ids
    async with lab.home.state.change(lab.home.account_id) as transaction:
        (await transaction.session.get_one(UserRow, alice.id)).pending_approval = True
        transaction.touch(users=[alice.id])
    assert (await ask(lab, str(phone.ip))).denied_reason == "pending_approval"


async def test_groups_that_are_left_count_at_once(lab: Lab) -> None:
    """An answer is about now, not about what was true when the member came."""
    phone = await lab.stock_peer("phone")
    group = await lab.group("g", phone)
    await lab.service("app", group)
    assert (await ask(lab, str(phone.ip))).valid
    await lab.set_members(group)
    assert not (await ask(lab, str(phone.ip))).valid


async def test_a_public_service_is_open_or_gated_by_its_sign_in(lab: Lab) -> None:
    """Any peer of the account, unless single sign-on is for some groups only."""
    phone = await lab.stock_peer("phone")
    group = await lab.group("g")
    service = await lab.service("app")
    assert (await ask(lab, str(phone.ip))).valid
    gated = AuthConfig(bearer_auth=BearerAuth(enabled=True, distribution_groups=(group.id,)))
    await lab.change(service, auth=gated)
    denied = await ask(lab, str(phone.ip))
    assert (denied.denied_reason, list(denied.required_group_names)) == ("not_in_group", ["g"])
    await lab.set_members(group, phone)
    assert (await ask(lab, str(phone.ip))).valid


async def test_being_let_in_is_a_sign_of_life(lab: Lab) -> None:
    """A stock peer has no other; a denial is none."""
    phone, laptop = await lab.stock_peer("phone"), await lab.stock_peer("laptop")
    await lab.service("app", await lab.group("g", phone))
    await ask(lab, str(laptop.ip))
    await ask(lab, str(phone.ip))

    async def seen(peer: Peer) -> Any:
        return get_peer(lab.home.state, lab.home.account_id, peer.id).last_seen

    await eventually(lambda: seen(phone), lambda moment: moment is not None)
    assert await seen(laptop) is None


class _Gate:
    """A plugin whose gate does what a test wants; it claims nothing."""

    def __init__(self, gate: Any) -> None:
        self.gate = gate

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(version="1", summary="for tests")

    @hookimpl
    def peer_gate(self) -> PeerGate | None:
        return self.gate  # type: ignore[no-any-return]


def _raises(**_: object) -> Decision:
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        (_raises, "gate_failed"),
        (lambda **_: True, "gate_failed"),
        (lambda **_: None, "gate_failed"),
        (lambda: Deny("x"), "gate_failed"),
        ("not callable", "gate_failed"),
        (lambda **_: Deny("too_late"), "too_late"),
        (lambda **_: Deny(""), "denied"),
    ],
    ids=["raises", "true", "nothing", "wrong arguments", "no gate", "denies", "denies without a reason"],
)
async def test_a_gate_that_does_not_allow_denies(home: Home, tmp_path: Path, gate: Any, reason: str) -> None:
    """Whatever a plugin answers instead of ALLOW, a member of the right group stays out, and no token is made."""
    plugins = ("private_service", "direct_upstream", ("gate", _Gate(gate)))
    async with lab_for(home, tmp_path, plugins=plugins) as lab:
        phone = await lab.stock_peer("phone")
        await lab.service("app", await lab.group("g", phone))
        denied = await ask(lab, str(phone.ip))
    assert (denied.valid, denied.denied_reason, denied.session_token) == (False, reason, "")


async def test_a_private_service_that_nobody_gates_admits_nobody(home: Home, tmp_path: Path) -> None:
    """Started without the plugin that gives `private` its meaning, with another plugin that lets everybody in."""
    async with lab_for(home, tmp_path) as lab:
        phone = await lab.stock_peer("phone")
        await lab.service("app", await lab.group("g", phone))
    from netbird_management import ALLOW

    plugins = ("direct_upstream", ("gate", _Gate(lambda **_: ALLOW)))
    async with lab_for(home, tmp_path, plugins=plugins) as lab:
        assert (await ask(lab, str(phone.ip))).denied_reason == "not_in_group"
        proxy = lab.proxy()
        await proxy.connect()
        assert proxy.mappings == {}
