"""Mappings in a file: every field of the wire that a file may say, and every mistake with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format

from netbird_proxy.sources.file.read import MAX_BYTES, MappingsRefused, read_mappings

GOOD = """\
# services of this proxy's own
[[mapping]]
id = "wiki"
domain = "wiki.example.com"
pass_host_header = true

[[mapping.path]]
path = "/"
target = "http://10.0.0.5:8080"
[mapping.path.options]
direct_upstream = true
request_timeout = "1.5s"
path_rewrite = "preserve"
custom_headers = { X-Env = "prod", "X-Team" = "a" }

[[mapping.path]]
path = "/api"
target = "http://10.0.0.6"
options = { request_timeout = 2, capture_content_types = ["a/b"] }

[mapping.plugin_settings.geo]
mode = "off"
limits = [1, 2.5]

[[mapping]]
id = "db"
domain = "db.example.com"
mode = "tcp"
listen_port = 5432
access_restrictions.allowed_cidrs = ["10.0.0.0/8"]
path = [{ target = "10.0.0.7:5432" }]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mappings.toml"


def refused(file: Path, text: str) -> list[str]:
    """The problems, without the file's name."""
    file.write_text(text)
    with pytest.raises(MappingsRefused) as raised:
        read_mappings(file)
    return [problem.removeprefix(str(file)).removeprefix(":").removeprefix(" ") for problem in raised.value.problems]


def test_fields_are_the_wires(file: Path) -> None:
    """As they stand in `ProxyMapping`, durations as people write them, enums by their names."""
    file.write_text(GOOD)
    wiki, db = (one.wire for one in read_mappings(file))
    assert json_format.MessageToDict(wiki, preserving_proto_field_name=True) == {
        "id": "wiki",
        "domain": "wiki.example.com",
        "pass_host_header": True,
        "path": [
            {
                "path": "/",
                "target": "http://10.0.0.5:8080",
                "options": {
                    "direct_upstream": True,
                    "request_timeout": "1.500s",
                    "path_rewrite": "PATH_REWRITE_PRESERVE",
                    "custom_headers": {"X-Env": "prod", "X-Team": "a"},
                },
            },
            {
                "path": "/api",
                "target": "http://10.0.0.6",
                "options": {"request_timeout": "2s", "capture_content_types": ["a/b"]},
            },
        ],
        "plugin_settings": {"geo": {"mode": "off", "limits": [1.0, 2.5]}},
    }
    assert (db.mode, db.listen_port, list(db.access_restrictions.allowed_cidrs)) == ("tcp", 5432, ["10.0.0.0/8"])
    assert db.path[0].target == "10.0.0.7:5432"


def test_empty_file_maps_nothing(file: Path) -> None:
    """It is a set like any other."""
    file.write_text("# nothing yet\n")
    assert read_mappings(file) == []


START = '[[mapping]]\nid = "a"\ndomain = "a.example.com"\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = [", "1: not TOML: Invalid value"),
        (START + "domain = 2\n", "4: not TOML: Cannot overwrite a value"),
        ("[[mappings]]\nid = 1\n", "1: mappings: this section is not supported; mappings are [[mapping]]"),
        ("[mapping]\nid = 1\n", "1: mapping: write [[mapping]], one for each"),
        ("mapping = [1]\n", "1: mapping[0]: expected a table, not a number"),
        ('[[mapping]]\ndomain = "a"\n', "1: mapping[0]: id is required"),
        ('[[mapping]]\nid = "a"\n', "1: mapping[0]: domain is required"),
        (START + START, "5: mapping[1].id: 'a' is already the id of another mapping"),
        (START + "domian = 1\n", "4: mapping[0].domian: this field is not supported; did you mean domain?"),
        (START + "private = true\n", "4: mapping[0].private: needs peers and groups, which only management knows: "),
        (START + "private = false\n", "4: mapping[0].private: needs peers"),
        (START + 'account_id = "x"\n', "4: mapping[0].account_id: is management's alone: "),
        (START + 'auth_token = "x"\n', "4: mapping[0].auth_token: belongs to the mapping stream"),
        (START + "type = 1\n", "4: mapping[0].type: belongs to the mapping stream"),
        (START + "[mapping.auth]\npassword = true\n", "4: mapping[0].auth: needs management, which judges logins"),
        (START + "pass_host_header = 1\n", "4: mapping[0].pass_host_header: expected true or false, not a number"),
        (START + "mode = true\n", "4: mapping[0].mode: expected a text, not true or false"),
        (START + "listen_port = true\n", "4: mapping[0].listen_port: expected a whole number, not true or false"),
        (START + "listen_port = 99999999999\n", "4: mapping[0].listen_port: 99999999999 is out of range"),
        (START + 'path = "x"\n', "4: mapping[0].path: expected a list, not a text"),
        (START + "path = [[1]]\n", "4: mapping[0].path[0]: expected a table, not a list"),
        (START + "[mapping.path]\npath = 1\n", "4: mapping[0].path: expected a list, not a table"),
        (
            START + "[[mapping.path]]\n\n# x\ntarget = 1\n",
            "7: mapping[0].path[0].target: expected a text, not a number",
        ),
        (
            START + "[[mapping.path]]\n[[mapping.path]]\n[mapping.path.options]\nproxy_protocol = 1979-05-27\n",
            "7: mapping[0].path[1].options.proxy_protocol: expected true or false, not a date",
        ),
        (
            START + '[[mapping.path]]\noptions.request_timeout = "5"\n',
            "5: mapping[0].path[0].options.request_timeout: '5' is not a duration",
        ),
        (
            START + "[[mapping.path]]\noptions.request_timeout = -1\n",
            "5: mapping[0].path[0].options.request_timeout: must not be",
        ),
        (
            START + "[[mapping.path]]\noptions.request_timeout = true\n",
            "5: mapping[0].path[0].options.request_timeout: ex",
        ),
        (
            START + '[[mapping.path]]\noptions.path_rewrite = "keep"\n',
            "5: mapping[0].path[0].options.path_rewrite: expected one of default, preserve",
        ),
        (START + "[[mapping.path]]\noptions.custom_headers = 1\n", "5: mapping[0].path[0].options.custom_headers: ex"),
        (
            START + "[[mapping.path]]\n[mapping.path.options.custom_headers]\nX-A = 1\n",
            "6: mapping[0].path[0].options.custom_headers.X-A: expected a text, not a number",
        ),
        (START + "[[mapping.path]]\noptions.direct_upstream_11 = true\n", "5: mapping[0].path[0].options.direct_upst"),
        (START + "plugin_settings.geo = 1\n", "4: mapping[0].plugin_settings.geo: expected a table, not a number"),
        (START + "plugin_settings.geo.x = 1979-05-27\n", "4: mapping[0].plugin_settings.geo: must hold only"),
        (
            START + '[mapping.plugin_settings]\nnote = """\ndomian = 1\n"""\n[[mapping]]\ndomian = 1\n',
            "5: mapping[0].plugin_settings.note: expected a table, not a text",
        ),
    ],
)
def test_mistake_is_named_with_its_line(file: Path, text: str, problem: str) -> None:
    """File, line and field, and what would be right."""
    assert refused(file, text)[0].startswith(problem)


def test_lines_are_not_taken_from_texts(file: Path) -> None:
    """What looks like a key inside a text over several lines is none."""
    text = START + 'mode = """\ndomian = 1\n"""\n' + START.replace('"a"', '"b"') + "domian = 1\n"
    assert refused(file, text)[0].startswith("10: mapping[1].domian")


def test_every_mistake_is_told_at_once(file: Path) -> None:
    """Nobody fixes a file one start at a time."""
    problems = refused(file, START + "a = 1\nb = 2\n[[mapping]]\nid = 1\n")
    assert [problem.partition(":")[0] for problem in problems] == ["4", "5", "7"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"\xff", "is not UTF-8"), (b"#" * (MAX_BYTES + 1), "is larger than"), (b"a=" + b"[" * 9000, "is nested")],
)
def test_file_that_is_no_text(file: Path, content: bytes, problem: str) -> None:
    """Nor a small one."""
    file.write_bytes(content)
    with pytest.raises(MappingsRefused, match=problem):
        read_mappings(file)


def test_file_that_is_not_there(file: Path) -> None:
    """The system's own words."""
    with pytest.raises(MappingsRefused, match="cannot be read: No such file"):
        read_mappings(file)


def test_refusal_finds_the_field_that_it_names(file: Path) -> None:
    """What the codec or a plugin says later still leads to a line."""
    file.write_text(GOOD)
    wiki, db = read_mappings(file)
    assert (
        wiki.problem("path '/x?' holds a query", path=1)
        == f"{file}:17: mapping[0].path[1].path: path '/x?' holds a query"
    )
    assert wiki.problem("no idea", path=1).startswith(f"{file}:16: mapping[0].path[1]: ")
    assert wiki.problem("plugin geo cannot use its settings: limits: too many").startswith(f"{file}:21: mapping[0].plu")
    assert db.problem("nobody understands access_restrictions.allowed_cidrs").startswith(f"{file}:30: mapping[1].acc")
    assert db.problem("no").startswith(f"{file}:25: mapping[1]: no")
    assert [one.target for one in wiki.part(1).path] == ["http://10.0.0.6"]
