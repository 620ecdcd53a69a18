"""Indexes that follow changes say what looking at everything would."""

from hypothesis import given
from hypothesis import strategies as st

from netbird_management.model.clock import now
from netbird_management.model.domains import is_under
from netbird_management.model.ids import AccountId, GroupId, PeerId, ServiceId
from netbird_management.model.indexes import Names, ServiceIndex
from netbird_management.model.services import Service, ServiceMeta, Target, TargetType

MOMENT = now()
labels = st.sampled_from(["a", "b"])
domains = st.lists(labels, min_size=1, max_size=4).map(".".join)
accounts = st.sampled_from([AccountId("one"), AccountId("two")])
services = st.builds(
    lambda number, domain, cluster, port, peer, groups: Service(
        id=ServiceId(f"s{number}"),
        account_id=AccountId("one"),
        name="",
        domain=f"{number}.{domain}",
        proxy_cluster=cluster,
        meta=ServiceMeta(created_at=MOMENT),
        targets=(Target(peer, TargetType.PEER, "http", 80),),
        listen_port=port,
        access_groups=tuple(groups),
    ),
    st.integers(0, 4),
    domains,
    st.sampled_from(["px.test", "other.test"]),
    st.sampled_from([0, 10_000, 10_001]),
    st.sampled_from(["p", "q"]),
    st.lists(st.sampled_from([GroupId("g"), GroupId("h")]), unique=True),
)


@given(st.lists(st.tuples(services, st.booleans()), max_size=12))
def test_services_are_found_by_what_they_name(changes: list[tuple[Service, bool]]) -> None:
    """After each service that is written or deleted, each question has the answer of a search."""
    index, held = ServiceIndex.of(()), dict[ServiceId, Service]()
    for service, stays in changes:
        old = [held.pop(service.id)] if service.id in held else []
        new = [service] if stays else []
        held |= {one.id: one for one in new}
        index = index.replaced(old, new)
    every = held.values()
    for cluster in ("px.test", "other.test"):
        assert dict(index.of_cluster(cluster)) == {one.id: one for one in every if one.proxy_cluster == cluster}
        for port in (10_000, 10_001):
            found = {one.id: one for one in every if (one.proxy_cluster, one.listen_port) == (cluster, port)}
            assert dict(index.on_port(cluster, port)) == found
    for peer in ("p", "q"):
        assert set(index.targeting(PeerId(peer))) == {one.id for one in every if one.targets[0].target_id == peer}
    for group in (GroupId("g"), GroupId("h")):
        assert set(index.naming(group)) == {one.id for one in every if group in one.access_groups}
    assert all(index.by_domain(one.domain) == one for one in every)
    assert index.by_domain("nobody.test") is None


@given(st.lists(st.tuples(accounts, domains, st.booleans()), max_size=20), domains, accounts)
def test_names_above_and_below_are_found(
    changes: list[tuple[AccountId, str, bool]], asked: str, account: AccountId
) -> None:
    """What others hold at, above or below a name; held twice and let go once is held."""
    names, held = Names(), list[tuple[AccountId, str]]()
    for who, domain, comes in changes:
        if comes:
            names.add(who, domain)
            held.append((who, domain))
        elif (who, domain) in held:
            names.remove(who, domain)
            held.remove((who, domain))
    found = any(who != account and (is_under(asked, other) or is_under(other, asked)) for who, other in held)
    assert names.others_hold(asked, account) == found
