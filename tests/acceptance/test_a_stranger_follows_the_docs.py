"""From a clone to a plugin of one's own in the digits job, by nothing but the docs' commands."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from pages import DOCS, blocks, commands, session
from stranger import CHECKOUT

CLONED = (
    "pyproject.toml", "hatch_build.py", "constraints.txt", "README.md", "LICENSE", "CHANGELOG.md",
    "hatbus", "plugins", "docs/examples",
)  # fmt: skip
NAME = "hatbus-loss-watch"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What somebody has who cloned the repository."""
    folder = tmp_path / "clone"
    ignored = shutil.ignore_patterns("__pycache__", "dist", "*.egg-info")
    for name in CLONED:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, target, ignore=ignored)
        else:
            shutil.copy(CHECKOUT / name, target)
    for left in folder.glob("docs/**/runs"):  # of somebody who tried the examples in place
        shutil.rmtree(left)
    return folder


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The variables of a shell in a fresh environment.

    It reaches what hatbus requires in the environment of the tests, since tests download nothing;
    hatbus itself, its script and its plugins are only there once somebody installs them.
    """
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True, timeout=200)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    shared = tmp_path / "shared"
    shared.mkdir()
    for place in map(Path, site.getsitepackages()):
        for path in place.iterdir():
            if not path.name.lower().startswith(("hatbus", "_hatbus")):
                (shared / path.name).symlink_to(path)
    (own / "shared.pth").write_text(f"{shared}\n")
    return {
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run(script: str, env: dict[str, str], cwd: Path) -> str:
    """What a shell prints that stops at the first command that fails."""
    done = subprocess.run(
        ["bash", "-ec", script], cwd=cwd, env=env, capture_output=True, text=True, timeout=500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.mark.timeout(600)
def test_a_stranger_has_a_plugin_in_the_digits_job_after_less_than_ten_commands(
    clone: Path, shell: dict[str, str]
) -> None:
    install, *_ = commands(DOCS / "quickstart.md", blocks(DOCS / "quickstart.md", "sh"))
    told = session(DOCS / "publishing.md")
    ending = told.index("hatbus plugins check .", told.index("hatbus plugins check .") + 1)
    making, publishing = told[:ending], told[ending:]
    assert install.startswith("python -m pip install")
    assert making[-1].startswith("hatbus run")
    assert len([install, *making]) < 10

    before = files(clone)
    out = run("\n".join([install, *making]), shell, clone)
    assert " passed" in out
    assert "loss_watch: ok" in out
    assert "loss_watch/count" in out
    mine = clone / NAME
    job = json.loads(next((mine / "runs" / "digits").glob("2*/job.json")).read_text())
    assert job["hatbus"]["distributions"]["loss_watch"] == f"{NAME} 0.1.0"
    assert {path.parts[0] for path in files(clone) - before} == {NAME}  # nothing outside is touched

    # `python -m build` would download the build backend
    offline = [line.replace("-m build", "-m build --no-isolation") for line in publishing]
    run("\n".join(offline), shell, mine)
    wheel, sdist = (
        mine / "dist" / "hatbus_loss_watch-0.1.0-py3-none-any.whl",
        *mine.glob("dist/*.gz"),
    )
    names = zipfile.ZipFile(wheel).namelist()
    assert "hatbus_loss_watch/loss_watch.py" in names
    assert "hatbus_loss_watch/py.typed" in names
    with tarfile.open(sdist) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    assert {"LICENSE", "README.md", "tests/test_loss_watch.py"} <= inside
    checked = (
        f"python -m pip install --force-reinstall --no-deps {wheel}\nhatbus plugins check {NAME}"
    )
    assert "loss_watch: ok" in run(checked, shell, clone)
