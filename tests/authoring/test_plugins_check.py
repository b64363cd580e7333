"""hatbus plugins check: what is wrong with a package, and what would make it better."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stranger import hatbus, install, install_recorder

from hatbus.authoring import import_time
from hatbus.authoring.checking import Offer, problems_of
from hatbus.authoring.import_time import early_torch
from hatbus.cli import main
from hatbus.cli.check import check_folder, check_installed
from hatbus.discovery.class_source import Sources
from hatbus.discovery.first_party import DISTRIBUTIONS
from hatbus.errors import PluginError
from hatbus.events import payload
from hatbus.testing import PluginProject

pytest_plugins = ["hatbus.testing"]
CHECKOUT = Path(__file__).resolve().parents[2]
FOLDERS = [*sorted(CHECKOUT.glob("plugins/*")), CHECKOUT / "tests" / "thirdparty" / "hat-stand"]
HEAD = "from hatbus import CallbackMixin, hookimpl, plugin\n"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_good_package_has_no_problem_and_needs_no_advice(folder: Path) -> None:
    report = check_folder(folder)
    assert {name: found for name, found in report.items() if any(found)} == {}


@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS - {"hatbus"}))
def test_an_installed_distribution_of_ours_is_as_good(distribution: str) -> None:
    report = check_installed(distribution)
    assert {name: found for name, found in report.items() if any(found)} == {}


def problems(tmp_path: Path, body: str, head: str = HEAD) -> list[str]:
    """What is wrong with a class ``Hat`` of this source."""
    (tmp_path / "acme.py").write_text(head + body)
    return problems_of(Offer("hat", "acme:Hat", "acme"), Sources([tmp_path]))


CLASS = "@plugin()\nclass Hat:\n    @hookimpl\n    def on_loop_begin(self): ...\n"
OLD = "class Hat(CallbackMixin):\n    def on_step_end(self, **kwargs): ...\n"


def test_what_a_base_class_of_hatbus_implements_counts(tmp_path: Path) -> None:
    head = "from hatbus.tracking import Tracker\n"
    assert problems(tmp_path, "class Hat(Tracker):\n    def connect(self): ...\n", head) == []


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "@hookimpl\n    def on_step_endd(self): ...",
            "unknown event 'on_step_endd'; did you",
        ),
        ("@hookimpl\n    def on_step_end(self, optimiser): ...", "'optimiser'; did you mean"),
        ("@hookimpl\n    def on_step_end(self, *given): ...", "takes *given; name the arguments"),
        ("@hookimpl\n    def on_step_end(self, *, ctx): ...", "takes 'ctx' by keyword only"),
        ("@hookimpl\n    async def on_step_end(self): ...", "is async"),
        (
            "@hookimpl(tryfirst=True, trylast=True)\n    def on_step_end(self): ...",
            "says tryfirst and trylast; say one of them",
        ),
        ("@hookimpl(wrapper=True)\n    def run_step(self): return 1", "must yield once"),
        ("@hookimpl(hookwrapper=True)\n    def run_step(self): yield", "is an old-style wrapper"),
        ("@hookimpl\n    def run_step(self): yield", "yields; mark it @hookimpl(wrapper=True)"),
        (
            "def on_step_end(self): ...",
            "acme.py line 6: on_step_end is named like an event",
        ),
        ("def on_epoch_edn(self): ...", "on_epoch_edn is no event; did you mean 'on_epoch_end'?"),
        ("def state_dict(self): ...", "has state_dict and no load_state_dict"),
        ("def __eq__(self, other): ...", "compares by value"),
    ],
)
def test_what_registration_or_the_contract_would_refuse_is_found_in_the_source(
    method: str, message: str, tmp_path: Path
) -> None:
    (found,) = problems(tmp_path, f"{CLASS}    {method}\n")
    assert message in found


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("@plugin(stage='reprot')" + CLASS.removeprefix("@plugin()"), "@plugin: unknown stage"),
        ("@plugin()\nclass Hat: ...\n", "implements no event; mark its methods with @hookimpl"),
        ("class Hat(CallbackMixin): ...\n", "implements no event; override a method of Callback"),
        (
            "class Hat(CallbackMixin):\n    def on_epoch_start(self, **kwargs): ...\n",
            "acme.py line 3: on_epoch_start is no event, and another trainer's name for 'on_e",
        ),
        (
            "class Hat(CallbackMixin):\n    def on_train(self, **kwargs): ...\n",
            "implements no event: on_train is none; ",
        ),
        (
            f"{OLD}    def on_epoch_edn(self): ...\n",
            "acme.py line 4: on_epoch_edn is no event; did you mean 'on_epoch_end'?",
        ),
        (f"import dataclasses\n@dataclasses.dataclass\n{CLASS}", "@dataclass(eq=False)"),
        (f"import torch\ntorch.manual_seed(0)\n{CLASS}", "line 3: calls torch.manual_seed() when"),
        (f"import torch\ntry:\n    torch.set_num_threads(1)\nfinally: ...\n{CLASS}", "set_num_th"),
        (f"import torch\ntorch.backends.cudnn.benchmark = True\n{CLASS}", "sets torch.backends"),
        ("class Hat(:\n", "does not parse: acme.py line 2: invalid syntax"),
        ("class Hut: ...\n", "module 'acme' has no class 'Hat'"),
    ],
)
def test_what_a_class_or_its_module_has_wrong_is_found(
    body: str, message: str, tmp_path: Path
) -> None:
    (found,) = problems(tmp_path, body)
    assert message in found


@pytest.mark.parametrize(
    "body",
    [
        CLASS + "    @hookimpl\n    def on_step_end(self, note=None): ...\n",
        "import dataclasses\n@dataclasses.dataclass(eq=False)\n" + CLASS,
        f"{OLD}    def on_button(self): ...\n",
        f"import torch\n\ndef quick():\n    torch.set_num_threads(1)\n\n{CLASS}",
        "import foreign\n" + CLASS.replace("Hat", "Hat(foreign.Base)") + "    def state_dict(self):"
        " ...\n",
    ],
)
def test_what_is_right_is_left_in_peace(body: str, tmp_path: Path) -> None:
    assert problems(tmp_path, body) == []


def test_offers_that_lead_nowhere_and_names_that_are_taken_are_found(tmp_path: Path) -> None:
    (tmp_path / "acme.py").write_text(HEAD + CLASS)
    offers = ("hat", "acme"), ("hat", "acne:Hat"), ("ema", "acme:Hat"), ("A-b", "acme:Hat")
    found = [problems_of(Offer(*offer, "acme"), Sources([tmp_path])) for offer in offers]
    assert [one for (one,) in found] == [
        "'acme' names no class; accepted: 'package.module:Class'",
        "module 'acne' is not there",
        "the name 'ema' is reserved for hatbus-model; choose another",
        "the name 'A-b' is awkward in a job; write it like 'my_plugin'",
    ]


PROJECT = """
[project]
name = "acme-hats"
dependencies = [{requires!r}]
[project.entry-points."hatbus.plugins"]
hat = "acme.hat:Hat"
"""


def write_project(folder: Path, files: dict[str, str], requires: str = "hatbus>=0.1,<0.2") -> None:
    (folder / "src" / "acme").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT.format(requires=requires))
    for name, text in files.items():
        (folder / "src" / "acme" / name).write_text(text)


def test_advice_is_given_and_fails_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = HEAD + "import torch\n" + CLASS.replace("@plugin()\n", "")
    source += "    def __init__(self, rate, *, every: int = 2): ...\n"
    write_project(tmp_path, {"__init__.py": "from acme.hat import Hat\n", "hat.py": source})
    assert main(["plugins", "check", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "acme-hats: ok",
        (
            "acme-hats: advice: its metadata has no description, readme, license, requires-python; "
            "whoever finds it on an index looks for them"
        ),
        "hat: ok",
        (
            "hat: advice: declares no place in the order; say @plugin(stage='monitor'), or another "
            "stage"
        ),
        "hat: advice: has no docstring, whose first line is what `hatbus plugins` shows",
        "hat: advice: option 'rate' has no annotation, by which a job's values are checked",
        "hat: advice: option 'every' cannot be given in a job, where that key is the bus's own",
        (
            "hat: advice: import acme imports torch (hat.py line 2, by way of __init__.py line 1), "
            "and so does all that only looks the package up; import it in the plugin's own module"
        ),
    ]
    assert main(["plugins", "check", str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hat"]["advice"]) == 5


def test_advice_on_options_that_nobody_describes_and_arguments_that_will_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(payload.DEPRECATED, "num_epochs", payload.Deprecated("0.3", "'ctx'", "0.5"))
    source = HEAD + CLASS.replace(
        "class Hat:\n",
        'class Hat:\n    """A hat.\n\n    Args:\n        size: of it.\n    """\n\n'
        "    def __init__(self, size: int, colour: str) -> None: ...\n",
    ).replace("on_loop_begin(self)", "on_loop_begin(self, num_epochs)")
    write_project(tmp_path, {"__init__.py": "", "hat.py": source})
    assert check_folder(tmp_path)["hat"].advice == [
        "option 'colour' is not described under `Args:`, where editors look",
        (
            "hat.py line 12: on_loop_begin wants 'num_epochs', which is deprecated since "
            "hatbus 0.3 and goes in 0.5; use 'ctx'"
        ),
    ]


@pytest.mark.parametrize(
    ("init", "is_early"),
    [
        ("import torch\n", True),
        ("import torch.nn as nn\n", True),
        ("from . import hat\n", True),
        ("from .hat import Hat\n", True),
        ("try:\n    from torch import nn\nexcept ImportError: ...\n", True),
        ("", False),
        ("import json\n", False),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n", False),
        ("import typing as t\nif t.TYPE_CHECKING and 1:\n    import torch\n", False),
        ("from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    import torch\n", True),
        (
            "import typing\nif not typing.TYPE_CHECKING: ...\nelse:\n    import torch\n",
            False,
        ),
        ("from typing import TYPE_CHECKING\nif 1 or TYPE_CHECKING:\n    import torch\n", True),
        ("def __getattr__(name):\n    from acme.hat import Hat\n", False),
        ("if __name__ == '__main__':\n    import torch\n", False),
    ],
)
def test_early_torch_is_what_importing_the_package_really_does(
    init: str, is_early: bool, tmp_path: Path
) -> None:
    write_project(tmp_path, {"__init__.py": init, "hat.py": f"import torch\n{HEAD}{CLASS}"})
    source = tmp_path / "src"
    assert bool(early_torch(Sources([source]), "acme.hat")) is is_early
    if init.startswith(("import torch\n", "from . ", "from typing", "def")):  # a process is slow
        code = "import sys, acme; print('torch' in sys.modules)"
        done = subprocess.check_output([sys.executable, "-c", code], cwd=source, text=True)
        assert done.strip() == str(is_early)


def test_modules_that_import_one_another_are_each_read_once_however_deep_torch_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_through: list[ast.Module] = []
    names = [f"m{number}" for number in range(4)]
    everyone = "".join(f"from acme import {name}\n" for name in names)
    files = {f"{name}.py": everyone for name in names}
    chain = {f"c{number}.py": f"import acme.c{number + 1}\n" for number in range(12)}
    files |= chain | {"c12.py": "import torch\n", "__init__.py": f"{everyone}import acme.c0\n"}
    write_project(tmp_path, files)
    read = import_time.at_import
    monkeypatch.setattr(
        import_time, "at_import", lambda tree: [looked_through.append(tree), *read(tree)][1:]
    )
    assert "(c12.py line 1, by way of __init__.py line 5, by way of c0.py line 1" in early_torch(
        Sources([tmp_path / "src"]), "acme.hat"
    )
    assert len(looked_through) == 1 + len(names) + 13


@pytest.mark.parametrize(
    ("requires", "message"),
    [
        ("hatbus", "requires 'hatbus'; write 'hatbus>=0.1,<0.2'"),
        ("hatbus>=0.1", "requires 'hatbus>=0.1'; write"),
        ("torch", "does not require hatbus; add"),
    ],
)
def test_a_range_of_hatbus_versions_is_asked_for(
    requires: str, message: str, tmp_path: Path
) -> None:
    write_project(tmp_path, {"__init__.py": "", "hat.py": HEAD + CLASS}, requires)
    (found,) = check_folder(tmp_path)["acme-hats"].problems
    assert message in found


def test_a_wheel_is_read_as_it_will_be_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path / "in", "acme", {"hat": "acme:Hat"}, {"acme.py": HEAD + CLASS})
    wheel = shutil.make_archive(str(tmp_path / "acme-1.0-py3-none-any"), "zip", tmp_path / "in")
    wheel = Path(wheel).rename(Path(wheel).with_suffix(".whl"))
    assert main(["plugins", "check", str(wheel)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "advice" not in line] == ["acme: ok", "hat: ok"]
    wheel.write_text("torn")
    assert main(["plugins", "check", str(wheel)]) == 2
    assert "cannot be read as a wheel: File is not a zip file" in capsys.readouterr().err


def test_an_installed_distribution_is_imported_too(plugin_project: PluginProject) -> None:
    source = HEAD + "import nowhere_to_be_found\n" + CLASS
    plugin_project.install("acme", {"hat": "acme_hat:Hat"}, {"acme_hat.py": source})
    (found,) = check_installed("acme")["hat"].problems
    assert "ModuleNotFoundError: No module named 'nowhere_to_be_found'" in found


def test_a_project_goes_before_what_is_installed_and_any_other_folder_after(
    plugin_project: PluginProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plugin_project.install("acme", {"bowler": "acme_b:Hat"}, {"acme_b.py": HEAD + CLASS})
    monkeypatch.chdir(tmp_path)
    Path("acme").mkdir()
    assert main(["plugins", "check", "acme"]) == 2  # no range of versions
    assert "bowler: ok" in capsys.readouterr().out
    write_project(Path("acme"), {"__init__.py": "", "hat.py": HEAD + CLASS})
    for name in ("acme", "acme/pyproject.toml"):
        assert main(["plugins", "check", name]) == 0
        assert "hat: ok" in capsys.readouterr().out


def test_two_offers_of_one_name_are_a_problem_of_both(plugin_project: PluginProject) -> None:
    for name in ("acme", "bowlers"):
        plugin_project.install(name, {"hat": f"{name}:Hat"}, {f"{name}.py": HEAD + CLASS})
    assert "offered by acme 1.0" in check_installed("bowlers")["hat"].problems[0]


def test_installed_and_local_packages_are_checked_from_the_command_line(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install_recorder(site)
    install(site, "wrong-hats", {"hat": "wrong:Hat"}, {"wrong.py": "class Hat: ..."}, requires="")
    done = hatbus("plugins", "check", "wrong-hats", site=site, cwd=tmp_path)
    assert done.returncode == 2
    assert "wrong-hats: does not require hatbus" in done.stdout
    assert "hat: implements no event" in done.stdout
    good = hatbus("plugins", "check", "recorder", site=site, cwd=tmp_path)
    assert good.returncode == 0
    assert "recorder: ok\n" in good.stdout


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", "offers no plugin; add [project.entry-points"),
        ("empty", "no file 'empty/pyproject.toml'; give a folder with a pyproject.toml"),
        ("torn", "'torn/pyproject.toml' cannot be read: "),
        ("hatbus-gard", "did you mean 'hatbus-grad'?"),
        (
            "zzz",
            "wheel or folder 'zzz'; `hatbus plugins` lists what is installed",
        ),
    ],
)
def test_what_cannot_be_checked_is_said_in_one_line(
    what: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, text in (("nothing", "[project]\nname = 'a'\n"), ("empty", None), ("torn", "[a")):
        Path(folder).mkdir()
        if text is not None:
            Path(folder, "pyproject.toml").write_text(text)
    with pytest.raises(PluginError) as caught:
        check_folder(Path(what)) if Path(what).is_dir() else check_installed(what)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
