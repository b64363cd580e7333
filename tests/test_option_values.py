"""Constructors of the plugins refuse what they cannot use.

The refusal is one line of hatbus's own that says what is accepted, never a TypeError of Python's.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from hatbus import callbacks
from hatbus.errors import HatbusError, JobError

NAMED = {"modules": [["stem"]], "step_or_epoch": [1], "update_by": "step"}
PLUGINS: dict[str, dict[str, Any]] = {
    "CosLrUpdater": {},
    "CosineAnnealingLrUpdater": {},
    "CyclicLrUpdater": {},
    "OneCycleUpdater": {},
    "PolyLrUpdater": {"max_update": 5},
    "StepDecayLrUpdater": {},
    "NoamLrUpdater": {},
    "TorchLr": {"scheduler": "StepLR"},
    "FreezeModule": NAMED,
    "FuseBN": NAMED,
    "FreezeBNStatistics": {},
    "ExponentialMovingAverage": {},
    "MeanTeacher": {},
    "GradScale": {"module_and_scale": [("stem", 0.1)]},
    "GradClip": {"max_norm": 1.0},
    "Validation": {"data_loader": []},
    "MeanTeacherValidation": {"data_loader": []},
    "EarlyStopping": {"monitor": "val/loss"},
    "StatsMonitor": {},
    "MetricUpdater": {"metric_update_func": lambda m, b, o: None, "metrics": ["loss"]},
    "JsonlLog": {},
    "CsvLog": {},
    "GradMonitor": {},
    "NanGuard": {},
    "Progress": {},
    "TensorBoard": {"save_dir": "tb"},
    "Checkpoint": {"save_dir": "saved", "mode": "min", "monitor_metric_key": "val/loss"},
    "SaveTraced": {"save_dir": "traced", "trace_inputs": (torch.ones(1),)},
}
FLAGS = {"inplace", "only_batchnorm", "offload", "copy_student"}
FLAGS |= {"allow_anno_miss", "save_hash", "forward_before_trace"}
FLAGS |= {"init_with_train_model", "strict_match", "val_on_train_end", "share_callbacks"}
FLAGS |= {"check_finite", "lr", "overwrite", "describe", "save_on_train_end"}
FLAGS |= {"inference_mode", "incremental"}
FLAGS |= {"weights_only_export", "async_save", "trained_only", "hat_optimizer"}
ANY = FLAGS | {"name_prefix", "weights", "data_loader", "batch_processor", "kwargs"}
ANY |= {"task_sampler", "tb_writer_kwargs"}
"""Options whose value is looked at later, or may be anything that is true or false."""
BAD = [
    "x",
    "",
    -1,
    -0.5,
    float("nan"),
    float("inf"),
    True,
    [],
    [3, 1],
    [1, "a"],
    [None],
    1.5,
    {"a": 1},
    object(),
]
OPTIONS = [
    (name, option)
    for name in PLUGINS
    for option in inspect.signature(getattr(callbacks, name)).parameters
    if option not in ANY
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_a_value_of_a_wrong_kind_is_refused_in_one_line(name: str, option: str) -> None:
    plugin, refused = getattr(callbacks, name), 0
    for value in BAD:
        try:
            plugin(**{**PLUGINS[name], option: value})
        except HatbusError as error:
            refused += 1
            said = str(error)
            assert "\n" not in said
            assert any(word in said for word in ("accepted", "known:", "did you mean", "give"))
    assert refused >= len(BAD) // 2


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("CosLrUpdater", {"warmup_len": -1}, "warmup_len is -1; accepted: a whole number"),
        ("CosLrUpdater", {"warmup_lr_ratio": 1.5}, "a number of at least 0 and at most 1"),
        ("CosLrUpdater", {"warmup_mode": "linera"}, "did you mean 'linear'"),
        ("StepDecayLrUpdater", {"lr_decay_id": [3, 1]}, "ascending whole numbers"),
        ("PolyLrUpdater", {"max_update": 0}, "max_update is 0; accepted: a whole number"),
        ("CyclicLrUpdater", {"cyclic_times": 0}, "cyclic_times is 0"),
        ("CyclicLrUpdater", {"target_ratio": 10}, "accepted: two numbers, highest and lowest"),
        ("ExponentialMovingAverage", {"decay": "0.9"}, "ema: decay is '0.9'; accepted: 0 <="),
        ("GradClip", {"max_norm": "1"}, "grad_clip: max_norm is '1'; accepted: a number above 0"),
        ("FuseBN", {"update_by": "steps"}, "update_by is 'steps'; accepted: 'step', "),
        ("FreezeModule", {"modules": [None]}, "modules holds None; accepted: module names"),
        ("Validation", {"val_interval": 1.5}, "val_interval is 1.5; accepted: a whole number"),
        ("StatsMonitor", {"log_freq": 2.5}, "log_freq is 2.5; accepted: a whole number"),
        ("MetricUpdater", {"step_log_freq": 1.5}, "accepted: a whole number, below 1 for never"),
        ("GradMonitor", {"norm_type": "2"}, "norm_type is '2'; accepted: a number above 0, inf"),
        ("Checkpoint", {"override": "lr"}, "override is 'lr'; accepted: a list of names"),
        ("SaveTraced", {"formats": ["onnx"]}, "accepted: 'pt', 'pt2'"),
    ],
)  # fmt: skip
def test_the_message_says_what_is_accepted(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError) as caught:
        getattr(callbacks, name)(**{**PLUGINS[name], **options})
    assert said in str(caught.value)
