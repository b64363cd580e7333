"""Discovery: what is installed, what it says about itself, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stranger import install, install_recorder

from hatbus.discovery import entry_points
from hatbus.discovery.entry_points import entry_point_name, installed, lookup
from hatbus.discovery.first_party import FIRST_PARTY
from hatbus.errors import PluginError
from hatbus.events.declare import Declaration, declaration_of


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on ``sys.path`` whose modules are forgotten afterwards."""
    before = set(sys.modules)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    entry_points._scan.cache_clear()
    yield folder
    entry_points._scan.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith(("acme", "evil", "broken")):
            del sys.modules[name]


def test_a_plugin_is_found_by_name_without_importing_its_package(site: Path) -> None:
    install_recorder(site)
    found = lookup("recorder")
    assert (found.value, found.source) == ("acme_hats.recorder:Recorder", "acme-hats 1.0")
    assert "acme_hats" not in sys.modules


def test_describing_a_plugin_reads_its_source_and_imports_nothing(site: Path) -> None:
    install_recorder(site)
    reading = lookup("recorder").describe()
    assert reading is not None
    assert reading.summary == "Writes down the loss of every step."
    assert reading.declared == {"stage": "report", "ranks": "zero"}
    assert reading.events == ["on_step_end"]
    assert reading.parameters == (
        ("path", "str", None),
        ("digits", "int", "3"),
        ("scale", "float", "1.0"),
    )
    assert "acme_hats" not in sys.modules


def test_a_class_that_inherits_and_is_passed_on_is_described_with_its_bases(site: Path) -> None:
    base = """
        from hatbus import hookimpl as impl, plugin as declare
        @declare(stage="schedule", writes=("optimizer.lr",))
        class Base:
            def __init__(self, steps: int, *, by: str = "step", **more: object) -> None: ...
            @impl(wrapper=True)
            def run_step(self): result = yield; return result
    """
    modules = {
        "acme/__init__.py": "from .child import Child as Child",
        "acme/base.py": base,
        "acme/child.py": "from acme.base import Base\nclass Child(Base):\n    '''One line.'''\n",
    }
    install(site, "acme", {"child": "acme:Child"}, modules)
    reading = lookup("child").describe()
    assert reading is not None
    assert (reading.events, reading.declared["stage"]) == (["run_step"], "schedule")
    assert [p.name for p in reading.parameters] == ["steps", "by", "**more"]
    assert lookup("child").summary() == "One line."


@pytest.mark.parametrize(
    "classes",
    [
        "@plugin(every='2 epochs')\nclass Child(Base): ...\n",
        "@plugin(stage='report', after=None, tasks='det')\nclass Child(Base): ...\n",
        "@plugin()\nclass Child(Base): ...\n",
        "class Between(Base): ...\n@plugin(ranks='zero')\nclass Child(Between): ...\n",
        "@plugin(every='2 epochs')\nclass Other: ...\n@plugin()\nclass Child(Base, Other): ...\n",
        "class A(Base): ...\n@plugin(stage='setup')\nclass B(Base): ...\nclass Child(A, B): ...\n",
    ],
)
def test_a_place_is_read_as_the_decorators_of_a_class_and_its_bases_make_it(
    classes: str, site: Path
) -> None:
    base = (
        "from hatbus import hookimpl, plugin\n"
        "@plugin(stage='schedule', after='ema', writes='optimizer.lr')\n"
        "class Base:\n    @hookimpl\n    def on_step_end(self): ...\n"
    )
    modules = {
        "acme/__init__.py": "",
        "acme/base.py": base,
        "acme/child.py": f"from hatbus import plugin\nfrom acme.base import Base\n{classes}",
    }
    install(site, "acme", {"child": "acme.child:Child"}, modules)
    found = lookup("child")
    reading = found.describe()
    assert reading is not None
    assert reading.is_declared
    read = {k: v if k in ("stage", "every", "ranks") else (v,) for k, v in reading.declared.items()}
    assert Declaration(**read) == declaration_of(object.__new__(found.load()))


def test_a_class_whose_base_has_its_own_name_elsewhere_can_be_read(site: Path) -> None:
    source = "import far\nclass Child(far.Child): ...\n"
    install(site, "acme", {"child": "acme:Child"}, {"acme.py": source})
    reading = lookup("child").describe()
    assert reading is not None
    assert not reading.is_declared


def test_a_hat_callback_is_described_with_its_unmarked_events(site: Path) -> None:
    source = """
        from hatbus import CallbackMixin
        class Old(CallbackMixin):
            def on_step_end(self, **kwargs): ...
            def on_button(self): ...
            def helper(self): ...
    """
    install(site, "acme", {"old": "acme:Old"}, {"acme.py": source})
    reading = lookup("old").describe()
    assert reading is not None
    assert reading.events == ["on_step_end"]


def test_loading_puts_the_distribution_on_the_class_and_nothing_else(site: Path) -> None:
    install_recorder(site)
    cls = lookup("recorder").load()
    assert cls.__name__ == "Recorder"
    assert cls.__hatbus_source__ == "acme-hats 1.0"
    assert entry_point_name(cls) == "recorder"
    assert entry_point_name(Path) is None


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("Hat = 3", "'broken:Hat' is a int; accepted: a class"),
        ("", "has no attribute 'Hat'"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named_with_distribution_and_cause(
    site: Path, source: str, cause: str
) -> None:
    install(site, "broken-hats", {"hat": "broken:Hat"}, {"broken.py": source})
    with pytest.raises(PluginError) as caught:
        lookup("hat").load()
    assert "'hat' of broken-hats 1.0" in str(caught.value)
    assert cause in str(caught.value)


def test_a_misspelt_name_gets_the_nearest_installed_or_first_party_name(site: Path) -> None:
    install_recorder(site)
    with pytest.raises(PluginError, match="unknown plugin 'recordr'; did you mean 'recorder'"):
        lookup("recordr")
    with pytest.raises(PluginError, match=r"'cosin_lr' in j \[p\]; did you mean 'cos_lr'"):
        lookup("cosin_lr", "in j [p]")


def test_two_distributions_with_one_name_are_refused_only_when_it_is_used(site: Path) -> None:
    install_recorder(site)
    install(site, "evil-hats", {"recorder": "evil:Recorder"})
    install(site, "other-hats", {"other": "acme_hats.recorder:Recorder"})
    assert len([found for found in installed() if found.name == "recorder"]) == 2
    assert lookup("other").load()
    with pytest.raises(PluginError, match=r"acme-hats 1.0 .* and evil-hats 1.0 .*; uninstall one"):
        lookup("recorder")


@pytest.mark.parametrize("name", sorted(FIRST_PARTY))
def test_a_foreign_distribution_may_not_offer_a_first_party_name(site: Path, name: str) -> None:
    install(site, "evil-hats", {name: "evil:Hat"})
    with pytest.raises(PluginError) as caught:
        lookup(name)
    assert "evil-hats 1.0" in str(caught.value)
    assert f"reserved for {FIRST_PARTY[name].distribution}" in str(caught.value)


@pytest.mark.parametrize("allowed", ["acme-hats", "other, Acme_Hats", ""])
def test_an_allow_list_lets_its_distributions_in(
    site: Path, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    install_recorder(site)
    monkeypatch.setenv("HATBUS_ALLOW", allowed)
    assert lookup("recorder").load()


def test_an_allow_list_keeps_others_out_before_they_are_imported(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_recorder(site)
    monkeypatch.setenv("HATBUS_ALLOW", "hatbus-lr")
    with pytest.raises(PluginError, match="HATBUS_ALLOW='hatbus-lr' does not name 'acme-hats'"):
        lookup("recorder").load()
    assert "acme_hats" not in sys.modules


def test_importing_hatbus_its_cli_discovery_and_job_imports_no_torch(checkout: Path) -> None:
    code = (
        "import hatbus, hatbus.cli, hatbus.discovery.entry_points, hatbus.jobs.job\n"
        "import hatbus.events.training, hatbus.callbacks\n"
        "import sys; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=checkout, check=False).returncode == 0


def test_hatbus_plugin_is_the_decorator_whatever_was_imported_before(checkout: Path) -> None:
    code = (
        "import importlib, pkgutil, hatbus\n"
        "names = [m.name for m in pkgutil.iter_modules(hatbus.__path__)]\n"
        "clash = set(names) & set(hatbus.__all__)\n"
        "assert not clash, clash\n"
        "import hatbus.events.declare, hatbus.bus.bus, hatbus.discovery.entry_points\n"
        "from hatbus import plugin, hookimpl\n"
        "from hatbus.events import declare\n"
        "assert plugin is declare.plugin and hookimpl is declare.hookimpl\n"
        "assert all(getattr(hatbus, name) is not None for name in hatbus.__all__)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=checkout, check=False).returncode == 0


@pytest.mark.parametrize(
    "entry_points_txt",
    [
        b"[hatbus.plugins]\nnonsense without an equals sign\n",
        b"[console_scripts]\nalso without\n",
        b"\xff\xfe[\x00",
        b"stands in no section = a:b\n",
        b"[hatbus.plugins\nx = y\n",
        b"[hatbus.plugins]\nx = 1 2 3!!\n",
    ],
)
def test_entry_points_that_cannot_be_read_stop_nothing_and_are_named(
    site: Path, caplog: pytest.LogCaptureFixture, entry_points_txt: bytes
) -> None:
    install_recorder(site)
    info = site / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    names = sorted(found.name for found in installed())
    entry_points._scan.cache_clear()
    (info / "entry_points.txt").write_bytes(entry_points_txt)
    assert sorted({found.name for found in installed()} - {"x"}) == names
    assert lookup("recorder").load().__name__ == "Recorder"
    unread = b"without" in entry_points_txt or b"\xff" in entry_points_txt
    assert (str(info) in caplog.text) == unread
    if b"!!" in entry_points_txt:
        with pytest.raises(
            PluginError, match=r"'x' of stranger 1.0 cannot be loaded from '1 2 3!!'"
        ):
            lookup("x").load()
