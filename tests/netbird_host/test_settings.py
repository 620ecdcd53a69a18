"""Settings and their sources."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from netbird_host.setting_types import Count, Port, Seconds, SecondsOrZero, Secret, Section
from netbird_host.settings import Given, Settings, SettingsError, Sources, read_sources


class Door(Section):
    name: str
    port: Port = 80


class Limits(Section):
    head_timeout: Seconds = 10.0
    grace: SecondsOrZero = 0.5
    lines: Count = 100


class Vault(Section):
    token: Secret | None = None
    tokens: tuple[Secret, ...] = ()


class Host(Section):
    plugins: tuple[str, ...] = ()
    private: bool = False
    limits: Limits = Limits()
    doors: tuple[Door, ...] = ()
    vault: Vault = Field(default_factory=Vault)


class Options(Section):
    size: Count = 3
    names: tuple[str, ...] = ()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "host.toml"


def sources(
    file: Path | None = None, text: str = "", environment: dict[str, str] | None = None, *flags: Given
) -> Sources:
    if file is not None:
        file.write_text(text)
    return read_sources(file=file, environment=environment, prefix="HOST_", ignored={"HOST_CONFIG"}, flags=flags)


def read(
    file: Path | None = None, text: str = "", environment: dict[str, str] | None = None, *flags: Given
) -> Settings[Host]:
    return sources(file, text, environment, *flags).read(Host, {"alpha": Options})


def problems(
    file: Path | None = None, text: str = "", environment: dict[str, str] | None = None, *flags: Given
) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        read(file, text, environment, *flags)
    return caught.value.problems


def shown(settings: Settings[Host]) -> dict[str, tuple[str, str]]:
    return {line.path: (line.value, line.source) for line in settings.show()}


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(file: Path) -> None:
    """Each value comes from the strongest source that sets it, and the listing names that source."""
    text = "[limits]\nhead_timeout = 1\ngrace = 2\nlines = 3\n"
    environment = {"HOST_LIMITS__GRACE": "20s", "HOST_LIMITS__LINES": "30"}

    settings = read(file, text, environment, Given(("limits", "lines"), 300, "--lines"))

    assert settings.value.limits == Limits(head_timeout=1, grace=20, lines=300)
    assert shown(settings) == {
        "plugins": ("[]", "default"),
        "private": ("false", "default"),
        "limits.head_timeout": ("1", f"file {file}"),
        "limits.grace": ("20", "environment HOST_LIMITS__GRACE"),
        "limits.lines": ("300", "--lines"),
        "doors": ("[]", "default"),
        "vault.token": ("unset", "default"),
        "vault.tokens": ("[]", "default"),
        "alpha.size": ("3", "default"),
        "alpha.names": ("[]", "default"),
    }


def test_the_prefixed_name_beats_an_alias() -> None:
    """If a setting is given under both names, the prefixed one is in force."""
    alias = Given(("private",), True, "environment OTHER_PRIVATE")

    both = read_sources(environment={"HOST_PRIVATE": "false"}, prefix="HOST_", aliases=[alias])
    one = read_sources(environment={}, prefix="HOST_", aliases=[alias])

    assert both.read(Host).value.private is False
    assert one.read(Host).value.private is True


def test_lists_come_whole_from_one_source(file: Path) -> None:
    """A list from the environment replaces the file's. It is written with commas or as a TOML array."""
    text = 'plugins = ["a", "b"]\n[alpha]\nnames = ["x"]\n'

    assert read(file, text).value.plugins == ("a", "b")
    assert read(file, text, {"HOST_PLUGINS": "c, d,"}).value.plugins == ("c", "d")
    assert read(file, text, {"HOST_PLUGINS": '["e"]'}).value.plugins == ("e",)
    assert read(file, text, {"HOST_ALPHA__NAMES": "y,z"}).options["alpha"] == Options(names=("y", "z"))
    doors = read(None, "", {"HOST_DOORS": '[{name = "front", port = 443}]'})
    assert doors.value.doors == (Door(name="front", port=443),)
    assert shown(doors)["doors"] == ('[{name = "front", port = 443}]', "environment HOST_DOORS")


def test_the_list_of_plugins_is_known_before_the_rest_is_judged(file: Path) -> None:
    """The list of plugins can be read before the plugins' sections are validated, which needs the loaded plugins."""
    assert sources(file, 'plugins = ["a"]\n[whatever]\nx = 1').texts("plugins") == ("a",)
    assert sources(None, "", {"HOST_PLUGINS": "a,b"}).texts("plugins") == ("a", "b")
    with pytest.raises(SettingsError, match="plugins: expected a list of strings"):
        sources(file, "plugins = [1]").texts("plugins")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[limits]\nhead_timout = 1",
            "limits.head_timout: unknown setting; did you mean limits.head_timeout?",
        ),
        ("[limts]\nlines = 1", "limts: unknown setting; did you mean limits?"),
        ("[limts]", "limts: unknown setting; did you mean limits?"),
        ("[alfa]\nsize = 1", "alfa: unknown setting; did you mean alpha?"),
        ("[alpha]\nsiez = 1", "alpha.siez: unknown setting; did you mean alpha.size?"),
        ("[alpha]\nqqq = 1", "alpha.qqq: unknown setting; supported: names, size"),
        (
            "[[doors]]\nname='a'\n[[doors]]\nname='b'\nnme='b'",
            "doors[1].nme: unknown setting; did you mean doors[1].name?",
        ),
        ("[[doors]]\nport=1", "doors[0].name: this setting is required"),
        ("[[doors]]\nname='a'\nport=70000", "doors[0].port: input should be less than or equal to 65535, not 70000"),
        ("[limits]\nhead_timeout = 'soon'", "expected seconds as a number, or a text such as 500ms, 90s or 1m30s, not"),
        ("[limits]\nhead_timeout = true", "limits.head_timeout: expected seconds as a number"),
        ("[limits]\nhead_timeout = 0", "limits.head_timeout: input should be greater than 0, not 0"),
        ("[limits]\nhead_timeout = -1", "limits.head_timeout: input should be greater than 0"),
        ("[limits]\nhead_timeout = nan", "limits.head_timeout: input should be greater than 0, not nan"),
        ("[limits]\nlines = 1.0", "limits.lines: expected a whole number, not 1.0"),
        ("[limits]\nlines = true", "limits.lines: expected a whole number, not true"),
        ("private = 'perhaps'", "private: input should be a valid boolean, unable to interpret input, not 'perhaps'"),
        ("limits = 3", "limits: "),
        ("plugins = 'a'", "plugins: input should be a valid tuple, not 'a'"),
    ],
)
def test_a_wrong_setting_is_told_by_path_with_what_is_expected(file: Path, text: str, says: str) -> None:
    """A message suggests a name for an unknown one, names the expected value for an invalid one, and names the file."""
    (problem,) = problems(file, text)

    assert says in problem
    assert f"(file {file})" in problem or "required" in problem or text == "[limts]"  # an empty section has no source


def test_all_problems_are_told_at_once(file: Path) -> None:
    """One start reports all problems, in the host's and the plugins' sections, from every source."""
    told = problems(file, "[alpha]\nsize = 0\n[limits]\nlines = 'x'", {"HOST_PRIVAT": "1"})

    assert [one.partition(":")[0] for one in told] == ["limits.lines", "privat", "alpha.size"]
    assert "did you mean private? (environment HOST_PRIVAT)" in told[1]


def test_no_message_shows_a_secret(file: Path) -> None:
    """A secret is hidden also when it has a wrong type, replaces a section or has a misspelt name."""
    for text in ("[vault]\ntoken = 12345", "vault = 12345", "[vault]\ntokn = 12345", "[vault]\ntokens = [12345]"):
        assert "12345" not in "".join(problems(file, text)).replace(str(file), "")


def test_a_secret_is_never_printed(file: Path) -> None:
    """`repr`, `str`, the listing and JSON show `***`."""
    settings = read(file, "[vault]\ntoken = 'nbx_1'\ntokens = ['nbx_2']")

    everything = f"{settings} {settings.value!r} {settings.value.vault.token} {settings.show()} "
    everything += settings.value.model_dump_json()
    assert "nbx" not in everything
    assert shown(settings)["vault.token"] == ("***", f"file {file}")
    assert shown(settings)["vault.tokens"][0] == "[***]"
    token = settings.value.vault.token
    assert token is not None
    assert token.get_secret_value() == "nbx_1"
    assert repr(token) == "***"


def test_a_given_value_is_not_in_its_repr() -> None:
    """A value that is not validated yet may be a secret."""
    assert "nbx" not in repr(Given(("vault", "token"), "nbx_1", "--token"))


@pytest.mark.parametrize(
    ("text", "says"),
    [("x = ", "is not TOML"), ("\ud800", "is not UTF-8"), (None, "cannot be read: No such file or directory")],
)
def test_a_file_that_cannot_be_read_is_told(file: Path, text: str | None, says: str) -> None:
    """The message names the file and the fault."""
    if text is not None:
        file.write_text(text, "utf-8", "surrogatepass")
    with pytest.raises(SettingsError, match=f"{file}.*{says}"):
        read_sources(file=file)


def test_a_value_where_a_section_is_and_the_reverse_are_refused(file: Path) -> None:
    """Two sources that disagree about the shape of a setting cannot be merged."""
    assert "gives a plain value, but it is a section" in problems(file, "[limits]\nlines = 1", {"HOST_LIMITS": "1"})[0]
    assert "treats it as a section" in problems(file, "private = true", {"HOST_PRIVATE__X": "1"})[0]


def test_names_that_are_nobodys_settings_are_left_alone() -> None:
    """Variables of Kubernetes, variables that the command line reads, and those without the prefix are ignored."""
    environment = {
        "HOST_SERVICE_HOST": "10.0.0.1",
        "HOST_SERVICE_PORT": "80",
        "HOST_SERVICE_PORT_HTTP": "80",
        "HOST_PORT": "tcp://10.0.0.1:80",
        "HOST_PORT_80_TCP": "tcp://10.0.0.1:80",
        "HOST_PORT_80_TCP_ADDR": "10.0.0.1",
        "HOST_CONFIG": "/etc/host.toml",
        "PATH": "/bin",
    }

    assert read(None, "", environment).value == Host()
    assert "HOST_A__" in problems(None, "", {"HOST_A__": "1"})[0]


def test_an_empty_variable_is_unset() -> None:
    """An empty variable does not override weaker sources, and its name may be unknown."""
    sources = read_sources(
        environment={"HOST_PRIVATE": "", "HOST_LISTEN__ADDRESS": "", "HOST_UNKNOWN": ""}, prefix="HOST_"
    )

    assert sources.get("private") is None
    assert sources.get("listen", "address") is None
    assert sources.get("unknown") is None


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    """A byte order mark, which some editors write, is skipped."""
    file = tmp_path / "settings.toml"
    file.write_text("\ufeffprivate = true\n", encoding="utf-8")

    assert read_sources(file=file).get("private") is True


def test_section_of_a_plugin_that_is_not_loaded_says_what_to_add(file: Path) -> None:
    """The message says which plugin to add, and suggests no similar name."""
    with pytest.raises(SettingsError, match="beta: the plugin beta is installed but not in `plugins`: add it there"):
        sources(file, "[beta]\nsize = 1").read(Host, {"alpha": Options}, absent=["beta"])


def test_an_older_name_of_a_setting_is_read_and_reported(file: Path) -> None:
    """In a section, a list of sections, a plugin's section. Where both names are given, the older one is unknown."""

    class Door(Section):
        older_names: ClassVar = {"lock": "bolt"}
        bolt: bool = False

    class House(Section):
        door: Door = Door()
        doors: tuple[Door, ...] = ()

    class Shed(Section):
        older_names: ClassVar = {"size": "width"}
        width: Count = 1

    file.write_text("[door]\nlock = true\n[[doors]]\n[[doors]]\nlock = true\n[shed]\nsize = 3\n")
    settings = read_sources(file=file).read(House, {"shed": Shed})

    assert settings.value == House(door=Door(bolt=True), doors=(Door(), Door(bolt=True)))
    assert settings.options == {"shed": Shed(width=3)}
    assert [(renamed.old, renamed.new) for renamed in settings.renamed] == [
        ("door.lock", "door.bolt"),
        ("doors[1].lock", "doors[1].bolt"),
        ("shed.size", "shed.width"),
    ]
    assert {line.path: line.source for line in settings.show()}["door.bolt"] == f"file {file}"
    file.write_text("[door]\nlock = true\nbolt = true\n")
    with pytest.raises(SettingsError, match=r"door.lock: unknown setting"):
        read_sources(file=file).read(House)
