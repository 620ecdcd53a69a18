"""The address of an account's own proxies: one spelling, proved like a domain, and in nobody's way."""

from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from sqlalchemy import update

from netbird_management.grpc.server import Timing
from netbird_management.model.errors import Conflict, InvalidArgument
from netbird_management.model.ids import AccountId
from netbird_management.operations.accounts import create_account
from netbird_management.operations.custom_domains import DnsResolver, create_domain
from netbird_management.operations.proxies import clusters_of
from netbird_management.operations.proxy_tokens import create_proxy_token
from netbird_management.operations.services import create_service
from netbird_management.store.models import DomainRow
from tests.netbird_management import store_child
from tests.netbird_management.conftest import Home, proved_domain
from tests.netbird_management.grpc.conftest import CLUSTER, FakeProxy, Lab, lab_for
from tests.netbird_management.grpc.test_mappings import ended

Code = grpc.StatusCode
NO_DNS = DnsResolver(["127.0.0.1:9"], seconds=0.01)


async def account(lab: Lab, name: str) -> tuple[AccountId, str]:
    """Another account, and a token for its own proxies."""
    state = lab.home.state
    account_id, _ = await create_account(state, email=f"{name}@lab.test", name=name)
    _, token = await create_proxy_token(state, name=name, account_id=account_id, created_by="test")
    return account_id, token


async def refused(proxy: FakeProxy) -> Code:
    await proxy.introduce()
    return (await ended(proxy))[0]


@pytest.mark.parametrize("address", ["PX.TEST", "PX.Test.", " px.test", "px.test\n", "px.test"])
async def test_an_address_has_one_spelling(lab: Lab, address: str) -> None:
    """The proxy serves the cluster's services, whichever way it writes the address; and nobody else may have it."""
    service = await lab.service("app", await lab.group("g"))
    proxy = lab.proxy(cluster=address)
    await proxy.connect()
    assert set(proxy.mappings) == {service.id}
    assert {cluster.address for cluster in await clusters_of(lab.home.state, lab.home.account_id)} == {CLUSTER}
    _, token = await account(lab, "b")
    assert await refused(lab.proxy(token=token, proxy_id="b", cluster=address)) is Code.ALREADY_EXISTS


@pytest.mark.parametrize("address", ["com", "co.uk", "bank.com", "example.org"])
async def test_promise_10_an_address_without_proof_is_refused(lab: Lab, address: str) -> None:
    """Nothing is registered, so no name below it is blocked or served; an unvalidated domain proves nothing."""
    account_id, token = await account(lab, "b")
    await create_domain(lab.home.state, NO_DNS, account_id, domain="example.org", target_cluster="example.org")
    assert await refused(lab.proxy(token=token, proxy_id="b", cluster=address)) is Code.FAILED_PRECONDITION
    assert [cluster.address for cluster in await clusters_of(lab.home.state, account_id)] == [CLUSTER]


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("test", Code.ALREADY_EXISTS),
        ("below.px.test", Code.ALREADY_EXISTS),
        ("px.test", Code.ALREADY_EXISTS),
        ("a.example.org", Code.ALREADY_EXISTS),
        ("edge.example.org", Code.ALREADY_EXISTS),
    ],
)
async def test_promise_10_addresses_of_accounts_do_not_nest(lab: Lab, address: str, code: Code) -> None:
    """Neither with a shared cluster's nor with another account's, whatever DNS shows."""
    first, first_token = await account(lab, "a")
    await proved_domain(lab.home.state, first, "example.org")
    await lab.proxy(token=first_token, proxy_id="a", cluster="edge.example.org").connect()
    await lab.proxy(token=first_token, proxy_id="a2", cluster="below.a.example.org").connect()
    second, token = await account(lab, "b")
    await proved_domain(lab.home.state, second, address)
    assert await refused(lab.proxy(token=token, proxy_id="b", cluster=address)) is code


async def test_an_account_serves_its_own_names_by_its_own_proxies(lab: Lab) -> None:
    """At a proved address, and at an IP address; names below it are the account's as long as its domain is."""
    state = lab.home.state
    account_id, token = await account(lab, "b")
    await proved_domain(state, account_id, "example.org", "edge.example.org")
    proxy = lab.proxy(token=token, proxy_id="b", cluster="Edge.example.org")
    await proxy.connect()
    given = replace(store_child.service(account_id), domain="app.edge.example.org")
    service = await create_service(state, store_child.HOOKS, given, store_child.SENT)
    assert service.own_cluster
    await proxy.next()
    assert set(proxy.mappings) == {service.id}
    with pytest.raises((InvalidArgument, Conflict)):
        await create_domain(state, NO_DNS, lab.home.account_id, domain="app.edge.example.org", target_cluster=CLUSTER)
    await lab.proxy(token=token, proxy_id="ip", cluster="192.0.2.1").connect()


async def test_promise_10_an_address_that_lost_its_proof_serves_and_blocks_nobody(home: Home, tmp_path: Path) -> None:
    """Its proxy is cut at the next look, its services are withheld, and the names are free for their owner."""
    async with lab_for(home, tmp_path, timing=Timing(heartbeat=0.02)) as lab:
        account_id, token = await account(lab, "b")
        await proved_domain(home.state, account_id, "example.org", "edge.example.org")
        proxy = lab.proxy(token=token, proxy_id="b", cluster="edge.example.org")
        await proxy.connect()
        given = replace(store_child.service(account_id), domain="app.edge.example.org")
        await create_service(home.state, store_child.HOOKS, given, store_child.SENT)
        async with home.state.change(account_id) as transaction:
            await transaction.session.execute(update(DomainRow).values(validated=False))
            transaction.touch(domains=True)
        assert (await ended(proxy))[0] is Code.FAILED_PRECONDITION
        assert home.state.snapshots.by_domain("app.edge.example.org") is None
        await proved_domain(home.state, home.account_id, "edge.example.org", CLUSTER)
        mine = replace(store_child.service(home.account_id), domain="app.edge.example.org")
        await create_service(home.state, store_child.HOOKS, mine, store_child.SENT)
        assert home.state.snapshots.by_domain("app.edge.example.org") is not None
