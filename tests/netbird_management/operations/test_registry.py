"""Proxies and their tokens, sessions, and the access log."""

import base64
import json
import string
from dataclasses import replace
from datetime import timedelta

import pytest
from joserfc import jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import OKPKey
from nacl.signing import SigningKey
from sqlalchemy import update

from netbird_management.model.clock import now
from netbird_management.model.errors import BadRequest, NotFound
from netbird_management.model.ids import AccountId, ProxyId, ServiceId
from netbird_management.model.services import AccessLogEntry, Capabilities, Service, Status
from netbird_management.operations.access_log import access_log_page, forget_old_entries
from netbird_management.operations.accounts import create_account
from netbird_management.operations.proxies import (
    Registration,
    address_is_free,
    clusters_of,
    delete_cluster,
    disconnect_all_proxies,
    disconnect_proxy,
    forget_stale_proxies,
    heartbeat_proxy,
    register_proxy,
)
from netbird_management.operations.proxy_tokens import (
    create_proxy_token,
    find_proxy_token,
    get_proxy_token,
    note_token_used,
    proxy_tokens_of,
    revoke_proxy_token,
)
from netbird_management.operations.sessions import mint_session_token
from netbird_management.operations.statuses import Report, proxy_statuses, set_service_statuses
from netbird_management.secrets.session_tokens import new_key_pair, read_session_token, sign
from netbird_management.store.models import ProxyRow, ProxyTokenRow
from netbird_wire.tokens import stored_hash
from tests.netbird_management.conftest import Api, Home
from tests.netbird_management.reports import add_access_log_entries


async def test_an_old_connection_cannot_end_a_new_one(home: Home, proxy: Registration) -> None:
    """Heartbeat and disconnect are fenced by the connection's session id."""
    newer = replace(proxy, session_id="session-2")
    await register_proxy(home.state, newer)
    assert not await heartbeat_proxy(home.state, proxy)
    assert not await disconnect_proxy(home.state, proxy)
    assert (await clusters_of(home.state, home.account_id))[0].online
    assert await heartbeat_proxy(home.state, newer)
    assert await disconnect_proxy(home.state, newer)
    assert not (await clusters_of(home.state, home.account_id))[0].online


async def test_a_cluster_is_what_its_live_proxies_say(home: Home, proxy: Registration) -> None:
    """Capabilities join over active proxies, CrowdSec needs all; an account's own cluster comes first."""
    able = Capabilities(True, None, True, None, True)
    for name, capabilities in (("proxy-2", able), ("proxy-3", Capabilities())):
        other = replace(proxy, proxy_id=ProxyId(name), session_id=name, capabilities=capabilities)
        await register_proxy(home.state, other)
    own = replace(proxy, proxy_id=ProxyId("own"), session_id="own", cluster="own.test", account_id=home.account_id)
    await register_proxy(home.state, own)
    mine, shared = await clusters_of(home.state, home.account_id)
    assert (mine.address, mine.type, mine.connected_proxies) == ("own.test", "account", 1)
    assert (shared.id, shared.type, shared.connected_proxies) == ("proxy-1", "shared", 3)
    assert (shared.supports_custom_ports, shared.require_subdomain, shared.supports_crowdsec) == (True, False, False)
    other_id, _ = await create_account(home.state, email="x@y.test", name="X")
    assert [cluster.address for cluster in await clusters_of(home.state, other_id)] == ["px.test"]
    assert await address_is_free(home.state, "own.test", home.account_id)
    assert not await address_is_free(home.state, "own.test", other_id)
    assert not await address_is_free(home.state, "px.test", home.account_id)
    with pytest.raises(NotFound):
        await delete_cluster(home.state, home.account_id, "px.test")
    with pytest.raises(NotFound):
        await delete_cluster(home.state, other_id, "own.test")
    await delete_cluster(home.state, home.account_id, "own.test")


async def test_silent_proxies_are_offline_and_then_forgotten(home: Home, proxy: Registration) -> None:
    """After two minutes without heartbeat not counted, after an hour gone; a restart counts nobody."""
    await disconnect_all_proxies(home.state)
    assert not (await clusters_of(home.state, home.account_id))[0].online
    assert await heartbeat_proxy(home.state, proxy)
    for age, expected in ((3, [False]), (61, [])):
        async with home.state.write() as session:
            await session.execute(update(ProxyRow).values(last_seen=now() - timedelta(minutes=age)))
        await forget_stale_proxies(home.state)
        assert [cluster.online for cluster in await clusters_of(home.state, home.account_id)] == expected


async def test_a_status_needs_its_service_and_its_proxy(home: Home, proxy: Registration) -> None:
    """Nobody reports for what is not there."""
    report = Report(ServiceId("x"), proxy.proxy_id, Status.ACTIVE)
    assert await set_service_statuses(home.state, [report]) == {report}
    assert await proxy_statuses(home.state, ServiceId("x")) == []


async def test_proxy_tokens_are_found_by_hash_and_revoked(home: Home) -> None:
    """Only the hash is stored; another account can neither see nor revoke one; bad values are refused."""
    token, plain = await create_proxy_token(
        home.state, name="t", account_id=home.account_id, created_by="test", expires_in=60
    )
    wide, _ = await create_proxy_token(home.state, name="w", account_id=None, created_by="CLI")
    assert await find_proxy_token(home.state, stored_hash(plain)) == token
    assert await find_proxy_token(home.state, stored_hash(plain + "x")) is None
    assert token.valid
    assert wide.valid
    assert await proxy_tokens_of(home.state, home.account_id) == [token]
    assert await proxy_tokens_of(home.state, None) == [wide]
    for account_id in (None, AccountId("other")):
        with pytest.raises(NotFound):
            await revoke_proxy_token(home.state, account_id, token.id)
    await note_token_used(home.state, token)
    await revoke_proxy_token(home.state, home.account_id, token.id)
    now_revoked = await get_proxy_token(home.state, token.id)
    assert now_revoked is not None
    assert not now_revoked.valid
    assert now_revoked.last_used is not None
    async with home.state.write() as session:
        past = now() - timedelta(seconds=1)
        await session.execute(update(ProxyTokenRow).values(revoked=False, expires_at=past))
    expired = await get_proxy_token(home.state, token.id)
    assert expired is not None
    assert not expired.valid
    for name, seconds in (("", 0), ("x" * 256, 0), ("x", -1), ("x", 1e18)):
        with pytest.raises(BadRequest):
            await create_proxy_token(home.state, name=name, account_id=None, created_by="t", expires_in=seconds)


async def test_a_session_is_for_one_service(api: Api, proxy: Registration) -> None:
    """A token verifies under its service's public key alone, for its domain, for a day, and pairs groups with names."""
    home = api.home
    body = {
        "name": "app",
        "domain": "app.px.test",
        "enabled": True,
        "targets": [
            {
                "target_id": "px.test",
                "target_type": "cluster",
                "protocol": "http",
                "host": "127.0.0.1",
                "port": 1,
                "enabled": True,
                "options": {"direct_upstream": True},
            }
        ],
    }
    made = await api.ok("POST", "/api/reverse-proxies/services", body)
    service = home.snapshot.services[ServiceId(made["id"])]
    groups = (home.snapshot.group_all,)
    text = await mint_session_token(home.state, service, "user", "oidc", email="a@b.test", groups=groups)
    with pytest.warns(SecurityWarning):  # of the algorithm's name, which the wire fixes
        token = jwt.decode(text, _key(service.session_public_key), algorithms=["EdDSA"])
    assert token.header == {"alg": "EdDSA", "typ": "JWT"}
    issued = token.claims.pop("iat")
    assert token.claims == {
        "iss": "netbird-management",
        "sub": "user",
        "aud": ["app.px.test"],
        "nbf": issued,
        "exp": issued + 86400,
        "method": "oidc",
        "email": "a@b.test",
        "groups": [groups[0].id],
        "group_names": ["All"],
    }
    with pytest.raises(ValueError, match="subject"):
        sign(new_key_pair()[0], "x", "", "pin")
    with pytest.raises(LookupError):
        await mint_session_token(home.state, _gone(service), "user", "oidc")


def test_only_its_own_service_reads_a_session() -> None:
    """Another key, domain, algorithm, a changed claim, an expired one: none of them is a session."""
    private, public = new_key_pair()
    text = sign(private, "app.px.test", "user", "oidc", email="a@b.test")
    session = read_session_token(text, public, "app.px.test")
    assert session is not None
    assert (session.subject, session.method) == ("user", "oidc")
    head, payload, signature = text.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    for wrong in (
        "",
        "..",
        head,
        f"{none}.{payload}.",
        f"{none}.{payload}.{signature}",
        f"{head}.{payload}x.{signature}",
        f"{head}.{payload}.{signature}==",
        f"{head}.{payload}.{_last_bits(signature)}",
        f" {text}",
        f"{text}\n",
        f"{text}.",
    ):
        assert read_session_token(wrong, public, "app.px.test") is None, wrong
    for change in ({"exp": 1}, {"nbf": 1 << 40}, {"iss": "eve"}, {"sub": ""}, {"aud": "app.px.test"}, {"exp": True}):
        assert read_session_token(_signed(private, {**claims, **change}), public, "app.px.test") is None, change
    assert read_session_token(_signed(private, claims), public, "app.px.test") is not None
    assert read_session_token(text, public, "other.px.test") is None
    assert read_session_token(text, new_key_pair()[1], "app.px.test") is None
    with pytest.raises(ValueError, match="32 bytes"):
        read_session_token(text, "AAAA", "app.px.test")


def test_a_header_chooses_nothing() -> None:
    """A right signature under a header that names another algorithm or wants something understood is no session."""
    private, public = new_key_pair()
    claims = json.loads(base64.urlsafe_b64decode(sign(private, "app.px.test", "u", "pin").split(".")[1] + "=="))
    assert read_session_token(_signed(private, claims, b'{"alg":"EdDSA"}'), public, "app.px.test") is not None
    for header in (
        b"{}",
        b"[]",
        b"EdDSA",
        b'{"alg":"none"}',
        b'{"alg":"Ed25519"}',
        b'{"alg":"HS256"}',
        b'{"alg":["EdDSA"]}',
        b'{"alg":"EdDSA","crit":["b64"],"b64":false}',
        b'{"alg":"EdDSA","crit":[]}',
        b"[" * 100_000,
    ):
        assert read_session_token(_signed(private, claims, header), public, "app.px.test") is None, header[:60]


def _last_bits(text: str) -> str:
    """The same bytes for a lenient reader: base64's last character has bits that count for nothing."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]


def _signed(private: bytes, claims: dict[str, object], header: bytes = b'{"alg":"EdDSA"}') -> str:
    parts = [header, json.dumps(claims).encode()]
    head = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    signature = SigningKey(private[:32]).sign(head.encode()).signature
    return f"{head}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def _gone(service: Service) -> Service:
    return replace(service, id=ServiceId("gone"))


def _key(public: str) -> OKPKey:
    url = base64.urlsafe_b64encode(base64.b64decode(public)).decode().rstrip("=")
    return OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": url})


async def test_the_access_log_pages_filters_and_forgets(api: Api) -> None:
    """Newest first; a batch sent twice is stored once; filters are exact; old entries go."""
    home = api.home
    entries = [
        AccessLogEntry(
            id=str(i),
            account_id=home.account_id,
            service_id="s",
            timestamp=now() - timedelta(days=i),
            source_ip="192.0.2.1",
            method="GET",
            host=f"h{i % 2}",
            path="/",
            duration_ms=1,
            status_code=200,
            bytes_upload=0,
            bytes_download=1,
            user_groups=("g",),
            metadata={"peer": "p"},
        )
        for i in range(5)
    ]
    await add_access_log_entries(home.state, entries)
    await add_access_log_entries(home.state, entries[:1])
    await add_access_log_entries(home.state, [])
    page = await api.ok("GET", "/api/events/proxy?page=2&page_size=2")
    assert (page["total_records"], page["total_pages"], [one["id"] for one in page["data"]]) == (5, 3, ["2", "3"])
    assert page["data"][0]["user_groups"] == ["g"]
    odd = await api.ok("GET", "/api/events/proxy?host=h1&page=nonsense&page_size=9999&status_code=-1")
    assert [one["id"] for one in odd["data"]] == ["1", "3"]
    assert (await api.ok("GET", "/api/events/proxy?status_code=404"))["data"] == []
    await forget_old_entries(home.state, 2.5)
    left, total = await access_log_page(home.state, home.account_id, page=1, page_size=10)
    assert (total, [entry.id for entry in left]) == (3, ["0", "1", "2"])
    other_id, _ = await create_account(home.state, email="x@y.test", name="X")
    assert (await access_log_page(home.state, other_id, page=1, page_size=10))[1] == 0
