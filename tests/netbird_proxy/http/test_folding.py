"""Folding: all spellings of one host meet, and all readings of one path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_proxy.http.folding import FOLDS, climbs, fold_authority, fold_host, readings

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
def test_careless_reading_meets_the_plain_path(path: bytes) -> None:
    """Decoded, collapsed, without parameters, dots and case: one path."""
    forms = readings(path)
    assert forms is not None
    assert b"/admin/x" in {form.rstrip(b"/") for form in forms.values()}


@pytest.mark.parametrize(
    ("path", "read"),
    [
        (b"/ADMIN/..;/x", b"/admin/..;/x"),  # without case, with parameters
        (b"/%2561dmin", b"/admin"),  # decoded twice
        (b"/%2561dmin", b"/%61dmin"),  # and once
        (b"/admin./x", b"/admin/x"),
        (b"/admin%20/x", b"/admin/x"),
        (b"/%EF%BC%A1dmin", b"/admin"),  # a full-width A
        (b"/%E2%84%AAeys", b"/keys"),  # the sign for kelvin
        (b"/a//../admin", b"/a/admin"),  # dots that take away an empty segment
        (b"/a//../admin", b"/admin"),  # and those that take away the other
    ],
)
def test_every_mixture_of_folds_is_a_reading(path: bytes, read: bytes) -> None:
    """Upstreams apply some folds and not others."""
    assert read in (readings(path) or {}).values()


@given(st.text("aB/.;%2fF5c\\é ", max_size=24))
def test_readings_are_what_the_folds_make(text: str) -> None:
    """Each is the path with exactly the folds of its bits applied, and none is missing."""
    path = b"/" + text.encode()
    forms = readings(path)
    assert forms is not None
    for applied in range(1 << len(FOLDS)):
        form = path
        for bit, fold in enumerate(FOLDS):
            if applied >> bit & 1:
                form = fold(form)
        assert form in forms.values()
        assert forms.get(applied, form) == form


def test_too_many_readings_are_none() -> None:
    """The work on one path is bounded, and a plain path of any length is one reading."""
    assert readings(b"/" + b"a" * 65_536) is not None
    assert readings(b"/" + b"/%41;a%2F.x\\B" * 4_000) is None


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
