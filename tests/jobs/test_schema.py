"""hatbus schema: the JSON schema of job files says what hatbus itself says about a job."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest

from hatbus.cli import main
from hatbus.discovery.entry_points import installed
from hatbus.errors import JobError
from hatbus.jobs.jobrun import prepare
from hatbus.jobs.schema import argument_docs, hint_schema, job_schema
from hatbus.jobs.type_hints import Mismatch, convert
from hatbus.testing import PluginProject

pytest_plugins = ["hatbus.testing"]
CHECKOUT = Path(__file__).resolve().parents[2]
JOBS = sorted((CHECKOUT / "docs" / "examples").glob("*/job.toml"))
RUN = '[run]\nentry = "train.py:build"\nnum_epochs = 1\n'
ENTRY = """
from hatbus.testing import tiny_parts


def build(width: int = 3):
    return tiny_parts()
"""


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return job_schema()


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> Any:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.parent.name)
def test_every_example_fits_the_schema(job: Path, validator: Any) -> None:
    validator.validate(tomllib.loads(job.read_text()))


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        (RUN, True),
        ('[run]\nentry = "train.py:build"\n', False),
        (RUN + "num_steps = 3", False),
        ("[run]\nnum_epochs = 1\n", False),
        (RUN + 'precision = "fp8"', False),
        (RUN + 'precision = "bf16"', True),
        (RUN + "accumulate = 0", False),
        (RUN + "sed = 1", False),
        (RUN + "[run.args]\nwidth = 4", True),
        (RUN + "[plugin.cos_lr]", False),
        (RUN + "[plugins.grad_clip]\nmax_norm = 1.0", True),
        (RUN + "[plugins.cos_lr]\nwarmup_len = 3", True),
        (RUN + "[plugins.cos_lr]\nwarmup_len = 3.5", False),
        (RUN + "[plugins.cos_lr]\nwarmup_length = 3", False),
        (RUN + '[plugins.cos_lr]\nwarmup_len = 3\nevery = "2 steps"\nranks = "all"', True),
        (RUN + '[plugins.cos_lr]\nstage = "shedule"', False),
        (RUN + '[plugins.mine]\nuse = "cos_lr"\nwarmup_len = 3', True),
        (RUN + '[plugins.mine]\nuse = "cos_lr"\nwarmup_length = 3', False),
        (RUN + '[plugins.mine]\nuse = "cosin_lr"', False),
        (RUN + '[plugins.mine]\nuse = "hatbus.testing.tiny:TinyNet"', True),
        (RUN + "[plugins.mine]\nenabled = false", True),
        (RUN + '[plugins.ema]\nuse = "cos_lr"\nwarmup_len = 3', True),
        (RUN + '[plugins.freeze_module]\nmodules = [["body"]]\nstep_or_epoch = [0]\n'
         'update_by = "step"', True),
        (RUN + '[plugins.freeze_module]\nmodules = ["body"]\nstep_or_epoch = [0]\n'
         'update_by = "step"', False),
        (RUN + '[plugins.freeze_module]\nupdate_by = "step"', False),
    ],
)  # fmt: skip
def test_schema_and_hatbus_agree_on_a_job(
    text: str, is_good: bool, validator: Any, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(ENTRY)
    (tmp_path / "job.toml").write_text(text)
    try:
        prepare(tmp_path / "job.toml")
        taken = True
    except JobError:
        taken = False
    assert taken is is_good
    assert validator.is_valid(tomllib.loads(text)) is is_good


HINTS: list[Any] = [
    bool, int, float, str, Path, Any, int | None, str | int, Literal["a", 3], list[int],
    tuple[float, ...], tuple[int, str], dict[str, int], dict, list, list[list[str]],
]  # fmt: skip
VALUES: list[Any] = [
    True, 3, 2.5, "a", "b", [1, 2], [1, "a"], [1.5], [], {"a": 1}, {"a": "x y"}, [["a"]], [[1]],
]  # fmt: skip


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_schema_of_a_hint_takes_what_the_option_takes(hint: Any) -> None:
    defs = {"$defs": {"object": {"type": "string", "pattern": ":"}}}
    made = jsonschema.Draft202012Validator({**defs, **hint_schema(hint)})
    for value in VALUES:
        try:
            convert(value, hint, None)
            taken = True
        except Mismatch:
            taken = False
        assert made.is_valid(value) is taken, value


def test_every_default_fits_its_own_option(schema: dict[str, Any]) -> None:
    for found in installed():
        table = schema["$defs"][f"plugin.{found.name}"]
        for name, option in table["properties"].items():
            if "default" in option:
                made = jsonschema.Draft202012Validator({"$defs": schema["$defs"], **option})
                assert made.is_valid(option["default"]), (found.name, name)
            assert name.isidentifier()


def test_every_key_is_described(schema: dict[str, Any]) -> None:
    tables = {f.name: schema["$defs"][f"plugin.{f.name}"] for f in installed()}
    tables["run"] = schema["properties"]["run"]
    missing = [
        f"{table}.{name}"
        for table, found in tables.items()
        for name, option in found["properties"].items()
        if not option.get("description")
    ]
    assert missing == []


def test_named_objects_may_stand_for_any_option(validator: Any) -> None:
    for value in ("@net", "train.py:net", {"call": "train.py:make", "width": 3}):
        job = {
            "run": {"entry": "train.py:build", "num_epochs": 1},
            "plugins": {"validation": {"data_loader": value}},
        }
        validator.validate(job)


def test_a_plugin_that_cannot_be_imported_takes_any_option(plugin_project: PluginProject) -> None:
    plugin_project.install("acme", {"broken": "acme_broken:It"}, {"acme_broken.py": "import nope"})
    found = job_schema()["$defs"]["plugin.broken"]
    assert "additionalProperties" not in found
    assert "ModuleNotFoundError" in found["description"]


def test_descriptions_are_read_off_the_arguments_of_a_docstring() -> None:
    doc = "It.\n\nArgs:\n    a: first\n        goes on.\n    b, c: both.\n\nRaises:\n    d: no."
    assert argument_docs(doc) == {"a": "first goes on.", "b": "both.", "c": "both."}
    assert argument_docs("It.") == {}


def test_schema_is_printed_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["title"] == "a hatbus job"
    assert main(["schema", "--out", str(tmp_path / "job.schema.json")]) == 0
    assert (tmp_path / "job.schema.json").read_text() == printed
    capsys.readouterr()
    assert main(["schema", "--out", str(tmp_path / "no" / "x.json")]) == 6
    assert "cannot write" in capsys.readouterr().err
