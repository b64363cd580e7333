"""FreezeModule: when, what, momentum, model.train(), unfreezing, resume."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.errors import JobError
from hatbus_model.freeze_module import FreezeModule


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.side_backbone = nn.Linear(3, 4)
        self.head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x) + self.side_backbone(x))


class History:
    """What changed in each step: names of the state's tensors."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []
        self.training: list[dict[str, bool]] = []

    @hookimpl
    def on_step_begin(self, model: nn.Module) -> None:
        self.before = {n: v.clone() for n, v in model.state_dict().items()}

    @hookimpl
    def on_backward_begin(self, model: nn.Module) -> None:
        self.training.append({n: m.training for n, m in model.named_modules()})

    @hookimpl
    def on_step_end(self, model: nn.Module) -> None:
        after = model.state_dict()
        self.moved.append({n for n, v in self.before.items() if not torch.equal(v, after[n])})


class TrainMode:
    """Does what a careless validation does."""

    @hookimpl
    def on_step_end(self, model: nn.Module) -> None:
        model.train()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
}


def build(
    *plugins: object, optimizer: str = "sgd", batches: int = 4, accumulate: int = 1
) -> Trainer:
    model = Net()
    generator = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(5, 3, generator=generator), torch.randn(5, 1, generator=generator))
        for _ in range(batches)
    ]
    made = OPTIMIZERS[optimizer](model.parameters())
    named = {f"plugin_{number}": plugin for number, plugin in enumerate(plugins)}
    return Trainer(model, made, data, nn.functional.mse_loss, named, accumulate=accumulate)


def run(*plugins: object, steps: int = 8, **options: object) -> History:
    history = History()
    build(*plugins, history, **options).fit(num_steps=steps)
    return history


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_frozen_module_does_not_move_under_momentum_and_weight_decay(optimizer: str) -> None:
    history = run(FreezeModule([["backbone"]], [3], "step"), TrainMode(), optimizer=optimizer)
    for step, moved in enumerate(history.moved):
        backbone = {n for n in moved if n.startswith("backbone")}
        assert bool(backbone) == (step < 3)
        assert {"side_backbone.weight", "head.1.weight", "head.0.running_mean"} <= moved


def test_everything_in_it_is_in_eval_mode_even_after_train() -> None:
    history = run(FreezeModule([["backbone"]], [3], "step"), TrainMode())
    inside = ("backbone", "backbone.0", "backbone.1", "backbone.2")
    for step, training in enumerate(history.training):
        assert all(training[name] == (step < 3) for name in inside)
        assert training["head.0"]


def test_by_epoch_at_its_begin() -> None:
    history = run(FreezeModule([["backbone"], ["head"]], [1, 0], "epoch"))
    assert [any(n.startswith("backbone") for n in moved) for moved in history.moved] == [
        True
    ] * 4 + [False] * 4
    assert not any(n.startswith("head") for moved in history.moved for n in moved)


def test_only_batchnorm_keeps_statistics_and_trains_weights() -> None:
    history = run(FreezeModule([["backbone"]], [2], "step", only_batchnorm=True), TrainMode())
    for step, moved in enumerate(history.moved):
        assert ("backbone.1.running_mean" in moved) == (step < 2)
        assert {"backbone.1.weight", "backbone.0.weight", "head.0.running_mean"} <= moved
        assert history.training[step]["backbone.2"]


def test_unfreeze_at_lets_it_go_on() -> None:
    model_was_stopped = FreezeModule(
        [["backbone"], ["head"]], [1, 2], "step", unfreeze_at=[5, None]
    )
    history = run(model_was_stopped)
    backbone = [any(n.startswith("backbone") for n in moved) for moved in history.moved]
    head = [any(n.startswith("head") for n in moved) for moved in history.moved]
    assert backbone == [True, False, False, False, False, True, True, True]
    assert head == [True, True] + [False] * 6
    assert history.training[5]["backbone.2"]


def test_unfreezing_leaves_alone_what_did_not_train_before() -> None:
    trainer = build(FreezeModule([["backbone"]], [1], "step", unfreeze_at=[3]))
    trainer.ctx.model.backbone[0].bias.requires_grad_(False)
    trainer.fit(num_steps=5)
    assert not trainer.ctx.model.backbone[0].bias.requires_grad
    assert trainer.ctx.model.backbone[0].weight.requires_grad


def nested() -> list[FreezeModule]:
    """Two parts of one instance, the inner one for longer."""
    return [FreezeModule([["backbone"], ["backbone.0"]], [0, 1], "step", unfreeze_at=[2, 4])]


def two_instances() -> list[FreezeModule]:
    """The same by two instances."""
    return [
        FreezeModule([["backbone"]], [0], "step", unfreeze_at=[2]),
        FreezeModule([["backbone.0"]], [1], "step", unfreeze_at=[4]),
    ]


def inner_first() -> list[FreezeModule]:
    """The inner part is frozen first."""
    return [
        FreezeModule([["backbone"]], [1], "step", unfreeze_at=[2]),
        FreezeModule([["backbone.0"]], [0], "step", unfreeze_at=[4]),
    ]


@pytest.mark.parametrize("plugins", [nested, two_instances, inner_first])
def test_what_is_frozen_twice_goes_on_when_the_last_one_lets_it(
    plugins: Callable[[], list[FreezeModule]],
) -> None:
    history = History()
    trainer = build(*plugins(), history)
    trainer.ctx.model.backbone[0].bias.requires_grad_(False)
    trainer.fit(num_steps=6)
    inner = ["backbone.0.weight" in moved for moved in history.moved]
    outer = ["backbone.1.weight" in moved for moved in history.moved]
    assert inner == [False] * 4 + [True] * 2
    assert outer == [plugins is inner_first, False] + [True] * 4
    assert [training["backbone.0"] for training in history.training] == inner
    assert not trainer.ctx.model.backbone[0].bias.requires_grad


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("plugins", [nested, two_instances, inner_first])
def test_a_run_with_parts_frozen_twice_resumes_exactly(
    continues_exactly: Callable[..., object], plugins: Callable[[], list[FreezeModule]], at: int
) -> None:
    def again(more: list[object]) -> Trainer:
        trainer = build(*plugins(), *more)
        trainer.ctx.model.backbone[2].p = 0.0
        return trainer

    continues_exactly(again, 7, at)


def test_until_its_mark_training_is_the_same_bits() -> None:
    plain, late = build(), build(FreezeModule([["backbone"]], [99], "step"))
    for trainer in (plain, late):
        torch.manual_seed(7)  # for the dropout
        trainer.fit(num_steps=6)
    states = [t.ctx.model.state_dict().values() for t in (plain, late)]
    assert all(map(torch.equal, *states))


@pytest.mark.parametrize("at", [0, 2, 3, 4, 6])
@pytest.mark.parametrize("only_batchnorm", [False, True])
def test_a_resumed_run_is_in_the_same_condition(
    continues_exactly: Callable[..., object], at: int, only_batchnorm: bool
) -> None:
    def again(more: list[object]) -> Trainer:
        freeze = FreezeModule(
            [["backbone"], ["head"]], [3, 1], "step", only_batchnorm, unfreeze_at=[6, None]
        )
        trainer = build(freeze, *more)
        for module in trainer.ctx.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return trainer

    continues_exactly(again, 9, at)


def test_an_unknown_module_is_refused_with_the_closest_names() -> None:
    with pytest.raises(
        JobError, match=r"freeze_module: modules: unknown module 'backbon'; did you mean 'backbone'"
    ):
        run(FreezeModule([["backbon"]], [0], "step"))


@pytest.mark.parametrize(
    ("modules", "at", "by", "words"),
    [
        ([["a"]], [1, 2], "step", "modules has 1 entries, step_or_epoch 2"),
        ([["a"]], [-1], "step", "step_or_epoch holds -1"),
        ([["a"]], [1.5], "step", "step_or_epoch holds 1.5"),
        ([["a"]], [1], "steps", "did you mean 'step'"),
        ("backbone", [1], "step", "modules is 'backbone'"),
        ([[1]], [1], "step", "module names"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(
    modules: list, at: list, by: str, words: str
) -> None:
    with pytest.raises(JobError, match=words):
        FreezeModule(modules, at, by)


def test_freezing_everything_is_an_error_that_says_so() -> None:
    everything = FreezeModule([["backbone"], ["side_backbone", "head"]], [1, 2], "step")
    with pytest.raises(
        JobError, match="from step 2 on nothing is left to train; frozen: 'backbone'"
    ):
        run(everything)


def test_marks_can_be_previewed() -> None:
    trainer = build(
        by_step := FreezeModule([["backbone"], ["head"]], [7, 2], "step", unfreeze_at=[9, None])
    )
    assert by_step.preview_marks(trainer.ctx) == [
        (2, "freeze head"),
        (7, "freeze backbone"),
        (9, "unfreeze backbone"),
    ]
    by_epoch = FreezeModule([["backbone", "head"]], [2], "epoch")
    assert by_epoch.preview_marks(trainer.ctx) == [(8, "freeze backbone, head")]


def test_process_freezes_in_place() -> None:
    model = Net()
    FreezeModule([], [], "step").process(model, "backbone.0")
    assert not model.backbone[0].weight.requires_grad
    assert model.backbone[1].weight.requires_grad


def keeps_norm(only_batchnorm: bool) -> list[FreezeModule]:
    """The backbone is frozen for two steps."""
    return [FreezeModule([["backbone"]], [1], "step", only_batchnorm, unfreeze_at=[3])]


def keeps_norm_twice(only_batchnorm: bool) -> list[FreezeModule]:
    """A part of it for longer, by another instance, after the first."""
    inner = FreezeModule([["backbone.1"]], [2], "step", only_batchnorm, unfreeze_at=[4])
    return [*keeps_norm(only_batchnorm), inner]


@pytest.mark.parametrize("only_batchnorm", [False, True])
@pytest.mark.parametrize("plugins", [keeps_norm, keeps_norm_twice])
@pytest.mark.parametrize("at", [None, 0, 1, 2, 3])
def test_unfreezing_leaves_in_eval_mode_what_was_in_it_before(
    continues_exactly: Callable[..., object],
    plugins: Callable[[bool], list[FreezeModule]],
    only_batchnorm: bool,
    at: int | None,
) -> None:
    def again(more: list[object]) -> Trainer:
        trainer = build(*plugins(only_batchnorm), *more)
        trainer.ctx.model.backbone[2].p = 0.0
        trainer.ctx.model.backbone[1].eval()
        return trainer

    if at is not None:
        continues_exactly(again, 6, at)
        return
    trainer = again([history := History()])
    trainer.fit(num_steps=6)
    assert [training["backbone.1"] for training in history.training] == [False] * 6
    assert history.training[-1]["backbone.0"]
    assert history.training[-1]["head.0"]


def test_a_state_of_before_modes_were_kept_is_loaded() -> None:
    freeze = FreezeModule([["backbone"]], [0], "step", unfreeze_at=[2])
    trainer = build(freeze)
    trainer.ctx.model.backbone[1].eval()
    trainer.fit(num_steps=1)
    state = freeze.state_dict()
    del state["in_eval"]
    freeze.load_state_dict(state)
    assert freeze.state_dict()["in_eval"] == {"backbone": ["1"]}


class Replace:
    """Replaces or removes a module at a step."""

    def __init__(self, at: int, what: Callable[[Net], object]) -> None:
        self.at, self.what = at, what

    @hookimpl
    def on_step_begin(self, ctx: object) -> None:
        if ctx.global_step_id == self.at:
            self.what(ctx.model)
            new = [p for p in ctx.model.parameters() if id(p) not in known_to(ctx.optimizer)]
            if new:
                ctx.optimizer.add_param_group({"params": new})


def known_to(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", ["backbone", "backbone.0"])
def test_what_is_put_in_the_place_of_something_frozen_is_frozen(name: str) -> None:
    def new(model: Net) -> None:
        parent, _, key = name.rpartition(".")
        module = nn.Linear(3, 4) if key == "0" else nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
        setattr(model.get_submodule(parent), key, module)

    freeze = FreezeModule([["backbone"]], [1], "step", unfreeze_at=[5])
    build(Replace(3, new), freeze, history := History()).fit(num_steps=7)
    moved = [any(n.startswith("backbone") for n in found) for found in history.moved]
    assert moved == [True, False, False, False, False, True, True]
    assert [found["backbone.0"] for found in history.training] == moved


def test_a_frozen_module_that_is_taken_away_is_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def remove(model: Net) -> None:
        model.side_backbone = nn.Sequential(nn.Linear(3, 4))

    freeze = FreezeModule([["side_backbone.weird"], ["head"]], [0, 0], "step")
    trainer = build(Replace(2, remove), freeze)
    trainer.ctx.model.side_backbone.weird = nn.Identity()
    trainer.fit(num_steps=4)
    assert caplog.messages == [
        "freeze_module: the model has no 'side_backbone.weird' any more; it is frozen no longer"
    ]
    assert freeze.state_dict()["frozen"].keys() == {"head"}
