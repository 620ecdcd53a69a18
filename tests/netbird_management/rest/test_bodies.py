"""Bodies of requests: JSON that every reader reads alike, of bounded depth, and of text that can be stored."""

import pytest

from tests.netbird_management.conftest import Api

GROUPS = "/api/groups"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"text"',
        b'{"name":"a"',
        b'{"name":"a"} x',
        b'{"name":"a","name":"b"}',
        b'{"name":"a","resources":[{"id":"x","id":"y"}]}',
        b'{"name":"a","extra":NaN}',
        b'{"name":"a","extra":-Infinity}',
        b'{"name":"\xff"}',
        b'\xef\xbb\xbf{"name":"a"}',
        '{"name":"a"}'.encode("utf-16"),
        rb'{"name":"\ud800"}',
        rb'{"name":"a","extra":{"x":["\udc00"]}}',
        rb'{"name":"a","\ud800":1}',
        b'{"name":"a","extra":' + b"[" * 101 + b"]" * 101 + b"}",
        b'{"name":"a","extra":' + b'{"x":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"name":1}',
        b'{"name":true}',
        b'{"name":"a","peers":"x"}',
        b'{"name":"a","peers":[1]}',
        b'{"name":"a","peers":{}}',
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
async def test_a_body_that_two_readers_could_read_differently_changes_nothing(api: Api, body: bytes) -> None:
    """400 with a sentence, whatever is wrong with it."""
    before = api.home.snapshot.groups

    answer = await api.client.post(GROUPS, content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"message", "code"}
    assert api.home.snapshot.groups == before


async def test_text_of_every_plane_is_kept(api: Api) -> None:
    """Both spellings of a character beyond the first plane are one text."""
    for number, name in enumerate((rb"\ud83d\ude00", "😀".encode())):
        body = b'{"name":"%s%d","unheard_of":{"a":[],"b":null}}' % (name, number)
        answer = await api.client.post(GROUPS, content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["name"]) == (200, f"😀{number}")
