"""One account's services and revocations never keep a proxy from the mappings of the others."""

import hashlib
from dataclasses import replace

import pytest

from netbird_management.compute.mapping import MAPPING_BYTES, build
from netbird_management.compute.validate import TARGETS
from netbird_management.grpc.wire import MESSAGE_BYTES
from netbird_management.model.clock import now
from netbird_management.model.errors import InvalidArgument
from netbird_management.model.services import Service, Target, TargetOptions
from netbird_management.store.models import RevocationRow, ServiceRow
from netbird_management.store.service_rows import columns
from netbird_wire.proxy_service_pb2 import ProxyCapabilities
from tests.netbird_management.grpc.conftest import Lab, direct_target

NETBIRDS_PROXY = 4 << 20
"""The largest message that NetBird's proxies take, in bytes."""


def targets(number: int, *, disabled: bool = False) -> tuple[Target, ...]:
    """Targets of 64 KiB of headers each."""
    headers = tuple((f"x-{index}", "x" * 4000) for index in range(16))
    options = TargetOptions(direct_upstream=True, custom_headers=headers)
    target = replace(direct_target(), options=options, enabled=not disabled)
    return tuple(replace(target, path=f"/{index}") for index in range(number))


async def stored(lab: Lab, service: Service, **fields: object) -> None:
    """The service as an earlier version stored it, unjudged."""
    changed = replace(service, **fields)  # type: ignore[arg-type]
    async with lab.home.state.change(lab.home.account_id) as transaction:
        row = await transaction.session.get_one(ServiceRow, service.id)
        for column, value in columns(changed).items():
            setattr(row, column, value)
        transaction.touch(services=[service.id])


@pytest.mark.parametrize("disabled", [False, True], ids=["enabled", "disabled"])
async def test_promise_10_a_service_with_too_large_a_mapping_is_refused(lab: Lab, *, disabled: bool) -> None:
    """At creation and at change, disabled targets included; the largest one is accepted."""
    service = await lab.service("large", targets=targets(3))
    assert len(build(service, lab.home.snapshot, lab.hooks).wire) > MAPPING_BYTES // 2
    with pytest.raises(InvalidArgument, match="larger than 256 KiB"):
        await lab.service("larger", targets=targets(5, disabled=disabled))
    with pytest.raises(InvalidArgument, match="larger than 256 KiB"):
        await lab.change(service, targets=targets(5, disabled=disabled))


async def test_a_service_has_so_many_targets_and_no_more(lab: Lab) -> None:
    """A hundred; one more is refused."""
    many = tuple(replace(direct_target(), path=f"/{index}") for index in range(TARGETS + 1))
    await lab.service("many", targets=many[:-1])
    with pytest.raises(InvalidArgument, match="at most 100 targets"):
        await lab.service("more", targets=many)


async def test_promise_10_a_stored_service_with_too_large_a_mapping_is_withheld(lab: Lab) -> None:
    """The proxy gets everything else, and the operator the reason."""
    large, small = await lab.service("large"), await lab.service("small")
    await stored(lab, large, targets=targets(80))
    proxy = lab.proxy()
    await proxy.connect()
    assert set(proxy.mappings) == {small.id}
    assert "256 KiB" in build(lab.home.snapshot.services[large.id], lab.home.snapshot, lab.hooks).withheld


async def test_promise_10_no_message_is_larger_than_any_proxy_takes(lab: Lab) -> None:
    """A snapshot, and a change that concerns many services at once."""
    services = [await lab.service(f"large{number}", targets=targets(3), enabled=False) for number in range(25)]
    proxy = lab.proxy()
    await proxy.connect()
    async with lab.home.state.change(lab.home.account_id) as transaction:
        for service in services:
            (await transaction.session.get_one(ServiceRow, service.id)).enabled = True
            transaction.touch(services=[service.id])
    messages = []
    while len(proxy.mappings) < len(services):
        messages.append(await proxy.next())
    messages += await proxy.connect()
    assert set(proxy.mappings) == {service.id for service in services}
    assert len(messages) >= 4
    assert max(message.ByteSize() for message in messages) <= MESSAGE_BYTES + (64 << 10) < NETBIRDS_PROXY


async def test_promise_10_revocations_come_in_batches_before_all_mappings(lab: Lab) -> None:
    """More of them than fit a message; a proxy that does not read them gets none."""
    number = 30_000
    async with lab.home.state.change(lab.home.account_id) as transaction:
        for index in range(number):
            digest = hashlib.sha256(str(index).encode()).digest()
            row = RevocationRow(id=f"r{index}", account_id=lab.home.account_id, token_hash=digest, not_before=now())
            transaction.session.add(row)
        transaction.touch(revocations=True)
    service = await lab.service("app")
    messages = await lab.proxy(
        capabilities=ProxyCapabilities(private=True, supports_private_service=True, claims=["private"])
    ).connect()
    assert sum(len(message.revocations) for message in messages) == number
    assert max(message.ByteSize() for message in messages) <= MESSAGE_BYTES
    first = next(index for index, message in enumerate(messages) if message.mapping)
    assert not any(message.revocations for message in messages[first + 1 :])
    assert [message.initial_sync_complete for message in messages] == [False] * (len(messages) - 1) + [True]
    of_netbird = lab.proxy(proxy_id="netbird")
    [message] = await of_netbird.connect()
    assert (len(message.revocations), [mapping.id for mapping in message.mapping]) == (0, [service.id])
