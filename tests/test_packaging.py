"""What is built, and what the project files say about each other."""

import ast
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
LISTED = r"^-e (plugins/\S+)$"
TRACKERS = re.findall(LISTED, (ROOT / "requirements-trackers.txt").read_text(), re.MULTILINE)
IN_ALL = [folder for folder in PLUGINS if f"plugins/{folder.name}" not in TRACKERS]
DISTRIBUTIONS = [ROOT, *PLUGINS]
WITHOUT_INDEX = ["--no-index", "--no-build-isolation", "--disable-pip-version-check"]


def name_of(folder: Path) -> str:
    return project(folder)["name"]


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def entry_points() -> list[tuple[Path, str, str]]:
    group = "hatbus.plugins"
    return [
        (folder, name, value)
        for folder in PLUGINS
        for name, value in project(folder)["entry-points"][group].items()
    ]


def command(*args: str | Path, cwd: Path = ROOT) -> str:
    run = subprocess.run(args, cwd=cwd, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def wheel_metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def assert_no_local_path(metadata: Message) -> None:
    """No requirement is a URL, and the header names no folder of this machine."""
    requirements = metadata.get_all("Requires-Dist", [])
    assert not [one for one in requirements if "@" in one or "/" in one]
    header = "".join(value for key, value in metadata.items() if key != "Description")
    assert "file:" not in header
    assert str(ROOT) not in header


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build in, so that a build never sees or leaves anything in the checkout."""
    target = tmp_path_factory.mktemp("copy") / "hat bus"  # a blank, because a folder may have one
    leave_out = shutil.ignore_patterns(".*", "__pycache__", "runs", "dist", "build")
    shutil.copytree(ROOT, target, ignore=leave_out)
    return target


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=name_of)
def test_wheel_builds_and_holds_no_local_path(folder: Path, copy: Path, tmp_path: Path) -> None:
    source = copy / folder.relative_to(ROOT)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", *WITHOUT_INDEX, "-w", tmp_path]
    command(*pip, source)
    (wheel,) = tmp_path.glob("*.whl")
    assert_no_local_path(wheel_metadata(wheel))
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
    package, version, *_ = wheel.name.split("-")
    assert f"{package}/py.typed" in files
    assert package != "hatbus" or "hatbus/callbacks.pyi" in files
    assert {file.split("/")[0] for file in files} == {package, f"{package}-{version}.dist-info"}


def test_core_built_through_its_sdist_names_plugins_by_range(copy: Path, tmp_path: Path) -> None:
    command(sys.executable, "-m", "build", "--no-isolation", "-o", tmp_path, copy)
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        (name,) = [name for name in archive.getnames() if name.endswith("/PKG-INFO")]
        packaged = message_from_bytes(archive.extractfile(name).read())
    for metadata in (packaged, wheel_metadata(wheel)):
        assert_no_local_path(metadata)
        extra = [one for one in metadata.get_all("Requires-Dist") if "extra == 'all'" in one]
        assert sorted(one.split(";")[0] for one in extra) == [
            f"{name_of(folder)}~=0.1.0" for folder in IN_ALL
        ]


def resolved(copy: Path, tmp_path: Path) -> list[dict]:
    report = tmp_path / "report.json"
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--report", report]
    command(*pip, *WITHOUT_INDEX, "-c", "constraints.txt", ".[all]", cwd=copy)
    return json.loads(report.read_text())["install"]


def test_extra_all_installs_every_plugin_from_the_checkout(copy: Path, tmp_path: Path) -> None:
    found = {one["metadata"]["name"]: one["download_info"] for one in resolved(copy, tmp_path)}
    expected = {name_of(f): copy / f.relative_to(ROOT) for f in (ROOT, *IN_ALL)}
    urls = {name: info["url"] for name, info in found.items() if name in expected}
    assert {name: url.removesuffix("/.") for name, url in urls.items()} == {
        name: path.as_uri() for name, path in expected.items()
    }


def test_a_changed_plugin_is_built_anew_although_its_version_is_the_same(
    copy: Path, tmp_path: Path
) -> None:
    found = {
        one["metadata"]["name"]: one["download_info"]["url"] for one in resolved(copy, tmp_path)
    }
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--cache-dir", tmp_path / "cache"]
    added = copy / "plugins/hatbus-grad/src/hatbus_grad/added.py"
    for number in (1, 2):
        added.write_text(f"number = {number}\n")
        place = tmp_path / str(number)
        wheel_of = f"hatbus-grad @ {found['hatbus-grad']}"
        command(*pip, *WITHOUT_INDEX, "-w", place, wheel_of)
        (wheel,) = place.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            assert archive.read("hatbus_grad/added.py").decode() == f"number = {number}\n"
    added.unlink()


def test_release_variable_turns_paths_into_ranges(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATBUS_RELEASE", "1")
    ask = "import sys, hatch_build as b; print(b.prepare_metadata_for_build_wheel(sys.argv[1]))"
    folder = command(sys.executable, "-c", ask, tmp_path, cwd=copy).split()[-1]
    metadata = message_from_bytes((tmp_path / folder / "METADATA").read_bytes())
    assert_no_local_path(metadata)


@pytest.mark.parametrize(
    ("folder", "name", "value"), entry_points(), ids=[name for _, name, _ in entry_points()]
)
def test_entry_point_names_a_class_in_its_own_file(folder: Path, name: str, value: str) -> None:
    module, _, class_name = value.partition(":")
    file = folder / "src" / (module.replace(".", "/") + ".py")
    assert module == f"{folder.name.replace('-', '_')}.{name}"
    assert file.is_file()
    body = ast.parse(file.read_text()).body
    assert class_name in [node.name for node in body if isinstance(node, ast.ClassDef)]


def test_entry_point_names_are_unique() -> None:
    names = [name for _, name, _ in entry_points()]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("folder", PLUGINS, ids=name_of)
def test_plugin_folder_is_known_to_development_and_type_check(folder: Path) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert folder.name == name_of(folder)
    listed = re.findall(LISTED, (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)
    assert f"plugins/{folder.name}" in (
        *listed,
        *TRACKERS,
    )  # the latter installed by .ci/install.py
    assert f"plugins/{folder.name}/src" in settings["mypy_path"]


@pytest.mark.parametrize("folder", PLUGINS, ids=name_of)
def test_plugin_folder_is_known_to_the_check_of_imports(folder: Path) -> None:
    package = folder.name.replace("-", "_")
    for file in ("pyproject.toml", ".ci/public_names.toml"):
        settings = tomllib.loads((ROOT / file).read_text())["tool"]["importlinter"]
        assert package in settings["root_packages"]
        for contract in settings["contracts"]:
            assert contract["id"] != "core" or package in contract["forbidden_modules"]


def test_lists_name_no_plugin_folder_that_is_missing() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    listed = re.findall(LISTED, (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)
    listed += TRACKERS
    listed += [path.removesuffix("/src") for path in settings["mypy_path"]]
    assert {ROOT / path for path in listed} == set(PLUGINS)


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=name_of)
def test_every_dependency_has_a_tested_version(folder: Path) -> None:
    own = "constraints.txt" if folder in (ROOT, *IN_ALL) else "constraints-trackers.txt"
    names = {re.match(r"[\w-]+", one)[0] for one in project(folder)["dependencies"]}
    assert names - {"hatbus"} <= set(pins(own))


def test_trackers_are_tested_with_the_same_versions_but_where_their_clients_want_others() -> None:
    general, own = pins("constraints.txt"), pins("constraints-trackers.txt")
    other = {name for name in general.keys() & own.keys() if general[name] != own[name]}
    assert other == {"cachetools", "pillow"}
    assert {"torch", "numpy", "pluggy", "safetensors"} <= own.keys()


def test_tox_asks_for_the_tested_virtualenv_so_that_no_chore_makes_its_environment_anew() -> None:
    asked = re.search(r"^    (virtualenv==\S+)$", (ROOT / "tox.ini").read_text(), re.M)
    assert asked is not None
    assert asked[1] in (ROOT / "constraints.txt").read_text().splitlines()


def test_digits_are_the_file_that_their_page_describes() -> None:
    folder = ROOT / "docs" / "examples" / "digits"
    packed = (folder / "digits.csv.gz").read_bytes()
    rows = [line.split(b",") for line in gzip.decompress(packed).splitlines()]
    assert hashlib.sha256(packed).hexdigest() in (folder / "DATA.md").read_text()
    assert len(rows) == 1797
    assert {len(row) for row in rows} == {65}
