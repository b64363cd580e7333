"""``parallel``: what is refused before training, in a job, on the command line and in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_trainer
from torch import nn

from hatbus.errors import JobError
from hatbus.jobs.job import read_job
from hatbus.parallel import Parallel
from hatbus.parallel.modes.handover import check_optimizer

JOB = '[run]\nentry = "train.py:build"\nnum_epochs = 1\n'


def said(folder: Path, text: str, *options: str) -> str:
    """What a job is refused with."""
    path = folder / "job.toml"
    path.write_text(JOB + text)
    with pytest.raises(JobError) as caught:
        read_job(path, (), options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ('parallel = "fsdp"', (), "key 'parallel' is 'fsdp' in job.toml [run]; accepted: "),
        ("", ("run.parallel=zero3",), "key 'parallel' is 'zero3' in job.toml [run]; accepted: "),
        (
            '[run.parallel]\nmode = "fsdp2"\nblock = "Block"',
            (),
            "unknown option 'block' in job.toml [run.parallel]; did you mean 'blocks'?",
        ),
        (
            '[run.parallel]\nmode = "fsdp2"',
            ("run.parallel.find_unusd=true",),
            "unknown option 'find_unusd' in job.toml [run.parallel]; did you mean 'find_unused'?",
        ),
        (
            '[run.parallel]\nblocks = "Block"',
            (),
            (
                "parallel: blocks belongs to mode 'fsdp2' or 'hsdp', and the mode is 'ddp'; leave "
                "it out, or choose that mode (in job.toml [run.parallel])"
            ),
        ),
        (
            '[run.parallel]\nmode = "fsdp2"\nbucket_views = true',
            (),
            (
                "parallel: bucket_views belongs to mode 'ddp', and the mode is 'fsdp2'; leave it "
                "out, or choose that mode (in job.toml [run.parallel])"
            ),
        ),
        (
            '[run.parallel]\nmode = "hsdp"',
            (),
            (
                "parallel: mode 'hsdp' needs a mesh: how many groups, and processes in each, such "
                "as mesh = [2, 4] for 8 processes (in job.toml [run.parallel])"
            ),
        ),
        (
            '[run.parallel]\nmode = "hsdp"\nmesh = [2]',
            (),
            (
                "parallel: mesh is [2]; accepted: two whole numbers of at least 1, how many groups "
                "and how many processes in each (in job.toml [run.parallel])"
            ),
        ),
        (
            '[run.parallel]\nmode = "fsdp2"\nreshard_after_forward = 1',
            (),
            (
                "parallel: reshard_after_forward is 1; accepted: a whole number of at least 2 "
                "(in job.toml [run.parallel])"
            ),
        ),
    ],
)
def test_a_job_is_refused_in_one_line(
    text: str, options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    found = said(tmp_path, text, *options)
    assert found.startswith(words)
    assert "\n" not in found


def test_a_job_says_it_as_a_word_a_table_or_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    assert read_job(path).run.parallel is None
    assert read_job(path, (), ("run.parallel=fsdp2",)).run.parallel == "fsdp2"
    more = ("run.parallel.mode=hsdp", "run.parallel.mesh=[1, 2]", "run.parallel.blocks=Block")
    job = read_job(path, (), more)
    assert job.run.parallel == {"mode": "hsdp", "mesh": [1, 2], "blocks": "Block"}
    plan = Parallel(**job.run.parallel)
    assert plan.as_table() == job.run.parallel
    path.with_suffix(".json").write_text(job.to_json())
    assert read_job(path.with_suffix(".json")).run.parallel == job.run.parallel


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("fdsp2", "parallel is 'fdsp2'; accepted: 'ddp', 'fsdp2', 'hsdp'; did you mean 'fsdp2'?"),
        (2, "parallel is 2; accepted: 'ddp', 'fsdp2', 'hsdp', Parallel(...) or a table"),
        ({"blocs": "Linear"}, "parallel: unknown option 'blocs'; did you mean 'blocks'?"),
        ({"mode": "fsdp2", "offload": 1}, "parallel: offload is 1; accepted: True, False"),
        (
            {"mode": "fsdp2", "param_dtype": "bfloat16"},
            "parallel: param_dtype is 'bfloat16'; accepted: 'fp32', 'bf16', 'fp16'",
        ),
        (
            {"mode": "fsdp2", "blocks": "Linea"},
            "parallel: blocks: the model has no class or module 'Linea'; did you mean 'Linear'?",
        ),
        (
            {"mode": "fsdp2", "blocks": ["parts"]},
            (
                "parallel: blocks: 'parts' is a ModuleList, which is never called itself; name "
                "what is in it: 'parts.*'"
            ),
        ),
        (
            {"mode": "fsdp2", "blocks": ["parts.0", "parts.1"]},
            (
                "parallel: blocks: 'parts.0.weight' and 'parts.1.weight' are one parameter, in two "
                "blocks (parts.0, parts.1); leave the block out that shares it, or choose blocks "
                "of which one has both"
            ),
        ),
    ],
)
def test_python_is_refused_in_one_line(given: Any, words: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model.parts = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU()])
    model.parts[1].weight = model.parts[0].weight
    with pytest.raises(JobError) as caught:
        tiny_trainer(model=model, parallel=given)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_one_process_trains_whole_models_only_and_still_validates_and_predicts() -> None:
    trainer = tiny_trainer(parallel="fsdp2")
    assert len(list(trainer.predict([torch.ones(2, 3)]))) == 1
    with pytest.raises(JobError) as caught:
        trainer.fit(num_steps=1)
    assert str(caught.value).startswith(
        "parallel is 'fsdp2', which needs several processes, and this is one; start them: torchrun "
    )
    tiny_trainer(parallel=Parallel(find_unused=True, bucket_views=True)).fit(num_steps=1)


def test_a_model_without_memory_is_refused_where_nobody_gives_it_some() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 1)
    with pytest.raises(JobError, match="the model is on the meta device, and has no values"):
        tiny_trainer(model=model, parallel="ddp")


def test_static_graph_needs_one_batch_per_step() -> None:
    trainer = tiny_trainer(parallel=Parallel(static_graph=True), accumulate=2)
    with pytest.raises(JobError, match="static_graph needs one batch per step"):
        trainer.fit(num_steps=1)


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.LBFGS, torch.optim.Rprop])
def test_an_optimizer_that_cannot_update_shards_is_named(kind: Any) -> None:
    with pytest.raises(JobError, match=rf"optimizer {kind.__name__} .*, or parallel = 'ddp'"):
        check_optimizer(kind([nn.Parameter(torch.ones(2))]))
