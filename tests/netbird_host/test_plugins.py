"""Loading plugins from real distributions on the path, each of them correct or wrong in one way."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netbird_host.plugins import PluginError, Plugins, installed, load
from netbird_proxy.api import hookspecs

GROUP = "netbird_proxy"
HEAD = "from netbird_proxy import ALLOW, Claim, Guard, PluginInfo, always, hookimpl\n"
GOOD = """
class Plugin:
    @hookimpl
    def describe(self):
        return PluginInfo()
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that puts a distribution with one plugin on the path, as an installer would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def put(plugin: str, source: str = GOOD, *, distribution: str = "", value: str = "") -> None:
        distribution = distribution or f"{plugin}-dist"
        module = distribution.replace("-", "_")
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(HEAD + textwrap.dedent(source))
        info = tmp_path / f"{module}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2.3\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{plugin} = {module}{value or ':Plugin'}\n")
        importlib.invalidate_caches()

    yield put
    for module in modules:
        sys.modules.pop(module, None)


def loaded(*allowed: str | tuple[str, object], defaults: dict[str, object] | None = None, **more: object) -> Plugins:
    return load("netbird_proxy", hookspecs, group=GROUP, allowed=allowed, defaults=defaults, **more)  # type: ignore[arg-type]


def refusal(*allowed: str | tuple[str, object], **more: object) -> PluginError:
    with pytest.raises(PluginError) as caught:
        loaded(*allowed, **more)  # type: ignore[arg-type]
    return caught.value


def test_a_listed_plugin_is_made_and_told_apart_by_its_distribution(install: Install) -> None:
    """A plugin on the list is loaded, with the version of its distribution."""
    install("alpha")

    (plugin,) = loaded("alpha")

    assert (plugin.id, plugin.distribution, plugin.version) == ("alpha", "alpha-dist", "1.2.3")


def test_what_is_not_listed_is_not_imported(install: Install) -> None:
    """No line of an installed plugin runs unless the operator lists it."""
    install("alpha")
    install("beta", "raise SystemExit('imported')")

    assert [plugin.id for plugin in loaded("alpha")] == ["alpha"]
    assert "beta_dist" not in sys.modules
    assert {"alpha", "beta"} <= {offer.id for offer in installed(GROUP)}


def test_a_module_can_be_a_plugin(install: Install) -> None:
    """An entry point may name a module with hook functions; functions that the module imports are not hooks."""
    install("alpha", "from os.path import join as restrict\n@hookimpl\ndef describe(): return PluginInfo()", value=" ")

    assert loaded("alpha").implementers("describe") == ("alpha",)


MARKED = """
class Plugin:
    def __init__(self, *, name="{name}"):
        self.name = name

    @hookimpl
    def describe(self):
        return PluginInfo()

    @hookimpl({mark})
    def restrict(self, route):
        return self.name, route
"""


def test_order_is_rank_then_list_then_defaults(install: Install) -> None:
    """`tryfirst`, plain, `trylast`; inside a rank the operator's list, then the host's own."""
    marks = {"a": "trylast=True", "b": "", "c": "tryfirst=True", "d": "", "e": "trylast=True", "f": "tryfirst=True"}
    for name, mark in marks.items():
        install(name, MARKED.format(name=name, mark=mark))
    for name, mark in {"own": "", "first": "tryfirst=True", "last": "trylast=True"}.items():
        install(f"offer_{name}", MARKED.format(name=name, mark=mark), distribution=name)
    defaults: dict[str, object] = {name: f"{name}:Plugin" for name in ("own", "first", "last")}

    plugins = loaded("f", "e", "d", "c", "b", "a", defaults=defaults)

    assert plugins.implementers("restrict") == ("f", "c", "first", "d", "b", "own", "e", "a", "last")
    assert [plugin.id for plugin in plugins] == ["f", "e", "d", "c", "b", "a", "own", "first", "last"]


def test_naming_a_default_gives_it_a_place() -> None:
    """A default plugin that the operator lists is loaded once, at its place in the list."""
    defaults: dict[str, object] = {"one": make("one"), "two": make("two")}

    assert [plugin.id for plugin in loaded("two", ("mine", make("mine")), defaults=defaults)] == ["two", "mine", "one"]


def make(name: str) -> object:
    namespace: dict[str, object] = {}
    exec(HEAD + MARKED.format(name=name, mark=""), namespace)
    return namespace["Plugin"]


def test_a_call_passes_the_arguments_that_are_wanted() -> None:
    """The caller passes every argument of the hook; an implementation receives those that it names."""
    ((plugin, call),) = loaded(("alpha", make("alpha"))).calls("restrict")

    assert plugin == "alpha"
    assert call(route="the route", proxy="the proxy") == ("alpha", "the route")


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        ("    @hookimpl\n    async def restrict(self, route): ...", "restrict is `async def`"),
        ("    @hookimpl\n    async def restrict(self, route): yield", "restrict is `async def`"),
        ("    @hookimpl\n    def restrict(self, route): yield", "restrict is a generator"),
        ("    @hookimpl(wrapper=True)\n    def restrict(self, route): yield", "restrict is a hook wrapper"),
        ("    @hookimpl(hookwrapper=True)\n    def restrict(self, route): yield", "restrict is a hook wrapper"),
        ("    @hookimpl\n    def restrict(self, route=None): ...", "gives `route` a default"),
        ("    @hookimpl\n    def restrict(self, *, route): ...", "takes `route` after `*`"),
        ("    @hookimpl\n    def restrict(self, **given): ...", "name the arguments that it uses (route, proxy)"),
        ("    @hookimpl\n    def restrict(self, rout): ...", "did you mean route?"),
        ("    @hookimpl\n    def restrikt(self, route): ...", "did you mean restrict?"),
        ("    @hookimpl(specname='restrikt')\n    def mine(self, route): ...", "did you mean restrict?"),
        ("    @hookimpl(tryfirst=True, trylast=True)\n    def restrict(self, route): ...", "choose one"),
        ("    def restrict(self, route): ...", "add @hookimpl to it or rename it"),
        ("    @property\n    def broken(self): raise OSError('no')", "reading its attributes raised OSError: no"),
        ("    def __init__(self, needed): ...", "it must take no arguments"),
        ("    def __init__(self): raise OSError('no')", "raised OSError: no"),
    ],
)
def test_a_hook_that_would_not_do_its_work_is_refused(install: Install, hook: str, says: str) -> None:
    """Each mistake that would keep a hook from running stops the load, and the message says what to change."""
    install("alpha", f"{GOOD}\n{hook}\n")

    error = refusal("alpha")

    assert says in error.message
    assert error.plugin == "alpha"
    assert str(error).startswith("plugin alpha: ")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("class Plugin: pass", "has no describe hooks"),
        ("class Plugin:\n    @hookimpl\n    def describe(self): raise OSError('no')", "describe raised OSError: no"),
        ("class Plugin:\n    @hookimpl\n    def describe(self): raise SystemExit", "describe raised SystemExit"),
        ("class Plugin:\n    @hookimpl\n    def describe(self): return {}", "describe returned dict"),
        ("class Plugin:\n    @hookimpl\n    def describe(self): return None", "describe returned NoneType"),
        (
            "async def later(): ...\nclass Plugin:\n    @hookimpl\n    def describe(self): return later()",
            "describe returned coroutine",
        ),
        (
            f"{GOOD}\n    @hookimpl(specname='describe')\n    def again(self): return PluginInfo()",
            "has 2 describe hooks",
        ),
        ("raise OSError('no')", "importing alpha_dist:Plugin raised OSError: no"),
        ("raise SystemExit(3)", "raised SystemExit: 3"),
        ("x = 1", "raised AttributeError"),
        ("Plugin = 3", "neither a class nor a module"),
    ],
)
def test_a_plugin_that_cannot_say_what_it_is_is_refused(install: Install, body: str, says: str) -> None:
    """A failure at import, instantiation or `describe` stops the load, and the message names the plugin."""
    install("alpha", body)

    assert says in refusal("alpha").message


@pytest.mark.parametrize(
    "info",
    [
        "version=1",
        "summary=None",
        "capabilities='private'",
        "capabilities=['private']",
        "notes=(1,)",
        "cookies=('',)",
        "claims=('private',)",
        "claims=(Claim('private', True),)",
        "options=dict",
        "options=3",
        "settings=(3,)",
        "target_settings=int",
    ],
)
def test_a_description_of_wrong_types_is_refused(install: Install, info: str) -> None:
    """The types of a description are checked at load, field by field."""
    install("alpha", GOOD.replace("PluginInfo()", f"PluginInfo({info})"))

    assert f"describe: `{info.partition('=')[0]}` must be" in refusal("alpha").message


@pytest.mark.parametrize(
    ("info", "what"),
    [
        ("claims=(Claim('private', always),)", "claim private"),
        ("capabilities=('private',)", "capability private"),
        ("notes=('who',)", "note who"),
        ("cookies=('__Host-x',)", "cookie __Host-x"),
    ],
)
def test_a_shared_name_has_one_owner(install: Install, info: str, what: str) -> None:
    """A claim, capability, note or cookie belongs to one plugin, which may name it once."""
    source = GOOD.replace("PluginInfo()", f"PluginInfo({info})")
    install("alpha", source)
    install("beta", source)
    name, _, value = info.partition("=")
    install("gamma", GOOD.replace("PluginInfo()", f"PluginInfo({name}={value} * 2)"))

    assert f"{what} belongs to alpha already" in refusal("alpha", "beta").message
    assert refusal("beta", "alpha").plugin == "alpha"
    assert f"{what} twice" in refusal("gamma").message


def test_a_field_of_the_host_cannot_be_claimed(install: Install) -> None:
    """A field that the host itself understands belongs to no plugin."""
    install("alpha", GOOD.replace("PluginInfo()", "PluginInfo(claims=(Claim('domain'),))"))

    assert "belongs to the host itself" in refusal("alpha", core_claims=["domain"]).message


def test_two_plugins_cannot_share_an_options_model() -> None:
    """A plugin's section is looked up by its model, so a model belongs to one plugin."""
    namespace: dict[str, object] = {}
    exec(
        HEAD + "from pydantic import BaseModel\nclass O(BaseModel): ...\n" + GOOD.replace("()", "(options=O)"),
        namespace,
    )

    assert "options model O" in refusal(("one", namespace["Plugin"]), ("two", namespace["Plugin"])).message


def test_names_that_cannot_be_resolved_are_refused(install: Install) -> None:
    """A missing, repeated, ambiguous, reserved or malformed name stops the load, and the message says what to do."""
    install("alpha")
    install("twice", distribution="twice-one")
    install("twice", distribution="twice-two")
    own: dict[str, object] = {"twice": make("twice"), "quiet": make("quiet")}

    assert "(did you mean alpha?)" in refusal("alhpa").message
    assert "listed twice" in refusal("alpha", "alpha").message
    assert "(twice-one, twice-two): uninstall all but one" in refusal("twice").message
    assert "is built in, and twice-one, twice-two offers the same name" in refusal("twice", defaults=own).message
    assert "section of the settings file" in refusal("alpha", reserved_ids={"alpha"}).message
    assert "is not a plugin's name" in refusal("Alpha-1").message
    assert [plugin.id for plugin in loaded("alpha", defaults=own)] == ["alpha", "twice", "quiet"]


def test_a_broken_default_is_refused_like_any_other() -> None:
    """The host's own plugins are checked like installed ones."""
    assert "raised ModuleNotFoundError" in refusal(defaults={"own": "netbird_nowhere:Plugin"}).message
