"""A node's calls to management, on the real wire protocol."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import grpc.aio
import pytest

from netbird_overlay.membership.client import MAX_CHECKS, ManagementClient, open_channel
from netbird_overlay.membership.enrollment import enroll
from netbird_overlay.membership.errors import LoginExpired, ManagementFailure, NotRegistered, failure
from netbird_overlay.membership.meta import system_meta
from netbird_overlay.membership.testing import FakeManagement, serving
from netbird_wire.management_pb2 import Checks, PeerSystemMeta, RemotePeerConfig

pytestmark = pytest.mark.timeout(30)

Line = tuple[FakeManagement, ManagementClient, grpc.aio.Channel]


def described(files: Sequence[str]) -> PeerSystemMeta:
    return system_meta("node", files=files)


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    management = FakeManagement()
    management.setup_keys = {"SETUP"}
    management.tokens = {"TOKEN"}
    async with serving(management) as channel:
        yield management, ManagementClient(channel, secrets.token_bytes(32), described), channel


async def test_a_setup_key_or_a_token_registers(line: Line) -> None:
    """Either credential registers the node, with its DNS labels; a later login needs none."""
    management, client, channel = line
    for credential in ({"setup_key": "SETUP"}, {"jwt": "TOKEN"}):
        node = ManagementClient(channel, secrets.token_bytes(32), described)
        await node.login(**credential, dns_labels=["wiki"])
        assert list(management.logins[-1].dnsLabels) == ["wiki"]
        assert management.logins[-1].meta.hostname == "node"
        assert (await node.login()).peerConfig.address == management.address
    with pytest.raises(NotRegistered):
        await client.login()


async def test_a_refused_credential_is_no_missing_registration(line: Line) -> None:
    """A wrong setup key is a refusal of its own, which no retry and no new registration helps."""
    _, client, _ = line
    with pytest.raises(ManagementFailure, match="setup key is invalid") as caught:
        await client.login(setup_key="WRONG")
    assert type(caught.value) is ManagementFailure
    assert not caught.value.retryable
    async with asyncio.timeout(5):
        with pytest.raises(ManagementFailure, match="setup key is invalid"):
            await enroll(client, setup_key="WRONG")


async def test_an_expired_login_is_named(line: Line) -> None:
    """An expired login is not a missing registration: the user has to log in again."""
    management, client, _ = line
    await client.login(setup_key="SETUP")
    management.expired.add(client.public_key)
    with pytest.raises(LoginExpired):
        await client.login()
    with pytest.raises(LoginExpired):
        async with aclosing(client.sync()) as responses:  # type: ignore[type-var]
            await anext(responses)
    await client.login(jwt="TOKEN")


@pytest.mark.parametrize(
    ("code", "details", "kind", "retryable"),
    [
        ("PERMISSION_DENIED", "peer is not registered", NotRegistered, False),
        ("NOT_FOUND", "peer not found", NotRegistered, False),
        ("PERMISSION_DENIED", "peer login has expired, please log in once more", LoginExpired, False),
        ("INVALID_ARGUMENT", "bad key", ManagementFailure, False),
        ("FAILED_PRECONDITION", None, ManagementFailure, False),
        ("UNIMPLEMENTED", "", ManagementFailure, False),
        ("UNAVAILABLE", "", ManagementFailure, True),
        ("DEADLINE_EXCEEDED", "", ManagementFailure, True),
        ("RESOURCE_EXHAUSTED", "", ManagementFailure, True),
        ("INTERNAL", "", ManagementFailure, True),
    ],
)
def test_a_code_is_an_error(code: str, details: str | None, kind: type[ManagementFailure], retryable: bool) -> None:
    """Each status has its error, and says whether a retry can help."""
    error = failure("Login", code, details)
    assert (type(error), error.code, error.retryable) == (kind, code, retryable)


async def test_the_server_key_is_requested_each_time(line: Line) -> None:
    """Management's key may be new with each call, because it is so after each of its restarts."""
    management, client, _ = line
    await client.login(setup_key="SETUP")
    for _ in range(2):
        management.renew_key()
        await client.login()
        await client.sync_meta()
    assert len(await client.server_key()) == 32
    await client.healthy()


async def test_a_key_that_changes_between_two_calls_is_retried(line: Line) -> None:
    """Management that restarts between its key and our call refuses the envelope; the login is repeated."""
    management, client, _ = line
    restarts = iter([True])

    async def fault(name: str) -> None:
        if name == "Login" and next(restarts, False):
            management.renew_key()

    management.fault = fault
    async with asyncio.timeout(10):
        await enroll(client, setup_key="SETUP")


async def test_posture_checks_get_no_view_of_this_machine(line: Line) -> None:
    """Paths that management asks for are reported as absent, also those that exist; their number is limited."""
    management, client, _ = line
    management.checks = ["/etc/passwd", *(f"/{number}" for number in range(2 * MAX_CHECKS))]
    await client.login(setup_key="SETUP")
    await client.sync_meta()
    files = management.metas[-1].meta.files
    assert len(files) == MAX_CHECKS
    assert files[0].path == "/etc/passwd"
    assert not any(file.exist or file.processIsRunning for file in files)
    assert not client.note_checks([Checks(Files=management.checks)])
    assert client.note_checks([])


async def test_a_logout_removes_the_node(line: Line) -> None:
    """After a logout management does not know the key."""
    _, client, _ = line
    await client.login(setup_key="SETUP")
    await client.logout()
    with pytest.raises(NotRegistered):
        await client.sync_meta()


async def test_logins_by_an_identity_provider_are_asked_for(line: Line) -> None:
    """The configuration of either flow comes as management sent it, also to a stranger; none is a named failure."""
    management, client, _ = line
    for flow in (client.pkce_flow, client.device_flow):
        management.flow = b""
        with pytest.raises(ManagementFailure) as caught:
            await flow()
        assert (type(caught.value), caught.value.code) == (ManagementFailure, "NOT_FOUND")
        management.flow = b"\x0a\x02hi"
        assert await flow() == b"\x0a\x02hi"


async def test_registration_by_other_means_is_repeated_when_forgotten(line: Line) -> None:
    """`register` runs before the login, and again if management does not know the key then."""
    management, client, _ = line
    registrations = 0

    async def register() -> None:
        nonlocal registrations
        registrations += 1
        if registrations > 1:
            management.register(client.public_key, "")

    async with asyncio.timeout(10):
        await enroll(client, register=register)
    assert registrations == 2


async def test_a_cancelled_call_is_cancelled(line: Line) -> None:
    """A cancellation of the caller passes; one by a closed channel is a failure that is retried."""
    management, client, channel = line
    hanging = asyncio.Event()

    async def fault(name: str) -> None:
        hanging.set()
        await asyncio.Event().wait()

    management.fault = fault
    async with asyncio.TaskGroup() as group:
        calling = group.create_task(client.login())
        await hanging.wait()
        calling.cancel()
    assert calling.cancelled()
    await channel.close()
    with pytest.raises(ManagementFailure) as caught:
        await client.login()
    assert caught.value.retryable or caught.value.code == "MALFORMED"


@pytest.mark.parametrize("url", ["", "ftp://host", "host:80", "https://", "http:///path"])
def test_a_url_that_names_no_management_is_refused(url: str) -> None:
    """Only http:// and https:// addresses with a host are management's."""
    with pytest.raises(ValueError, match="not an http"):
        open_channel(url)


async def test_a_channel_has_management_s_limits() -> None:
    """A map of 8 MiB passes, which gRPC alone would refuse."""
    management = FakeManagement()
    management.setup_keys = {"SETUP"}
    padding = "x" * 1000
    async with serving(management), open_channel(f"http://{management.target}") as channel:
        client = ManagementClient(channel, secrets.token_bytes(32), described)
        await client.login(setup_key="SETUP")
        management.map.remotePeers.extend([RemotePeerConfig(fqdn=padding)] * 8500)
        async with aclosing(client.sync()) as responses:  # type: ignore[type-var]
            first = await anext(responses)
    assert first.ByteSize() > 8 << 20
