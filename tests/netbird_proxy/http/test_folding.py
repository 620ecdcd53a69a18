"""Folding: all spellings of one host meet, and all readings of one path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_proxy.http.folding import climbs, fold_authority, fold_host, fold_path

LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True).filter(
    lambda one: not one.startswith("xn--")
)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    ("said", "folded"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com.", "example.com"),
        ("example.com:8443", "example.com"),
        ("example.com.:8443", "example.com"),
        ("example.com:", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("bücher。example", "xn--bcher-kva.example"),
        ("XN--Bcher-kva.Example", "xn--bcher-kva.example"),
        ("my_app.example", "my_app.example"),
        ("localhost", "localhost"),
        ("10.0.0.1:80", "10.0.0.1"),
        ("[FD00:0:0::1]:443", "[fd00::1]"),
        ("[::1]", "[::1]"),
    ],
)
def test_spellings_meet(said: str, folded: str) -> None:
    """Case, port, the root's dot and IDNA make no difference."""
    assert fold_host(said) == folded
    assert fold_host(folded) == folded
    if said.isascii():
        assert fold_authority(said.encode()) == folded


@pytest.mark.parametrize(
    "said",
    [
        "",
        ".",
        ":80",
        "a..b",
        ".a",
        "a.b..",
        "a b",
        " a",
        "a ",
        "user@a",
        "a/b",
        "a,b",
        "a\x00b",
        "a:80:90",
        "a:port",
        "a:123456",
        "a" * 64,
        ".".join(["a" * 60] * 5),
        "[::1",
        "[::1]x",
        "[::1%25eth0]",
        "[nothing]",
        "fd00::1",
        "a\u200d.example",
        "%61.example",
    ],
)
def test_what_is_no_host_is_refused(said: str) -> None:
    """No guess is made about what a client meant."""
    with pytest.raises(ValueError, match=r"."):
        fold_host(said)
    with pytest.raises(ValueError, match=r"."):
        fold_authority(said.encode())


def test_a_field_is_ascii() -> None:
    """IDNA is for those who write mappings: a Host field that is not ASCII is no host."""
    with pytest.raises(ValueError, match="ascii"):
        fold_authority("bücher.example".encode())


@given(NAME, st.lists(st.booleans(), min_size=8, max_size=8), st.booleans(), st.none() | st.integers(0, 65535))
def test_any_spelling_of_a_name_folds_to_it(name: str, flips: list[bool], dot: bool, port: int | None) -> None:
    """Whatever mixture of case, dot and port."""
    mixed = "".join(one.upper() if flips[i % 8] else one for i, one in enumerate(name))
    said = mixed + ("." if dot else "") + ("" if port is None else f":{port}")
    assert fold_host(said) == name
    assert fold_authority(said.encode()) == name


@given(st.text(max_size=40))
def test_folding_folds_once(text: str) -> None:
    """What is folded folds to itself; the rest raises ValueError and nothing else."""
    try:
        folded = fold_host(text)
    except ValueError:
        return
    assert fold_host(folded) == folded
    assert fold_authority(folded.encode()) == folded


@given(st.binary(max_size=40))
def test_any_field_folds_or_is_refused(raw: bytes) -> None:
    """For any bytes."""
    try:
        assert fold_host(fold_authority(raw)) == fold_authority(raw)
    except ValueError:
        return


@pytest.mark.parametrize(
    "path",
    [
        b"/admin/x",
        b"//admin//x",
        b"/ADMIN/X",
        b"/%61dmin/x",
        b"/./admin/./x",
        b"/a/../admin/x",
        b"/a/%2e%2E/admin/x",
        b"/admin;p=1/x;q",
        b"/admin%3Bp/x",
        b"/admin%2Fx",
        b"\\admin\\x",
        b"/admin%5cx/",
        b"/../../admin/x",
    ],
)
def test_readings_meet(path: bytes) -> None:
    """Decoded, collapsed, without parameters and dots, lower case: one path."""
    assert fold_path(path) == b"/admin/x"


@given(st.binary(max_size=40))
def test_folded_path_has_no_other_reading(raw: bytes) -> None:
    """It starts with one slash, and has no empty, dot or upper-case segment."""
    folded = fold_path(b"/" + raw)
    assert folded.startswith(b"/")
    assert b"//" not in folded
    assert folded == folded.lower()
    assert not {b".", b".."} & set(folded.split(b"/"))


@pytest.mark.parametrize(
    ("path", "above"),
    [
        (b"/a/../b", False),
        (b"/a/../../b", True),
        (b"/..", True),
        (b"", False),
        (b"/%2e%2e/x", True),
        (b"/a/..\\..\\x", True),
        (b"/..;p/x", True),
        (b"/./a/..", False),
    ],
)
def test_climbing_is_noticed(path: bytes, above: bool) -> None:
    """Dot segments that lead above the start, however they are written."""
    assert climbs(path) is above
