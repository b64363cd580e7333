"""Objects from ``dict(type=...)`` configs, wherever one may stand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import batches, tiny_trainer
from torch import nn

from hatbus import CallbackMixin, Trainer, hookimpl
from hatbus.batches import HatBatchProcessor, built_optimizer
from hatbus.discovery import build
from hatbus.errors import HatbusError, PluginError
from hatbus.events.declare import declaration_of

torch.set_num_threads(1)


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class Holder:
    def __init__(self, head: Any, more: Any = ()) -> None:
        self.head, self.more = head, more


class Heard(CallbackMixin):
    def __init__(self, name: str = "") -> None:
        self.name = name
        self.steps: list[int] = []

    def on_step_end(self, global_step_id: int, **kwargs: Any) -> None:
        self.steps.append(global_step_id)


class Fails:
    def __init__(self) -> None:
        raise ValueError("no such file")


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        (nn.Linear, nn.Linear),
        ("Linear", nn.Linear),
        ("torch.nn.Linear", nn.Linear),
        ("torch.nn:Linear", nn.Linear),
        ("torch.nn.modules.linear.Linear", nn.Linear),
    ],
)
def test_type_is_a_class_or_a_name(kind: Any, cls: type) -> None:
    made = build({"type": kind, "in_features": 2, "out_features": 3})
    assert type(made) is cls
    assert made.weight.shape == (3, 2)


@pytest.mark.parametrize("kind", ["CosLrUpdater", "cos_lr"])
def test_a_plugin_has_the_name_of_its_class_and_of_its_entry_point(kind: str) -> None:
    assert type(build({"type": kind})).__name__ == "CosLrUpdater"


def test_configs_inside_are_built_first_in_lists_and_mappings_too() -> None:
    head = {"type": Head, "width": 1}
    made = build({"type": Holder, "head": head, "more": [{"a": (head, 2)}, {"b": 3}]})
    assert made.head.width == 1
    assert made.more[0]["a"] == (made.head, 2)
    assert made.more[1] == {"b": 3}


def test_a_config_that_stands_twice_is_one_object_and_a_copy_another() -> None:
    head = {"type": Head, "width": 1}
    made = build(
        [{"type": Holder, "head": head, "more": dict(head)}, {"type": Holder, "head": head}]
    )
    assert made[0].head is made[1].head
    assert made[0].more is not made[0].head


def test_what_holds_no_config_is_given_back_as_it_is() -> None:
    given = [{"a": [1, (2, 3)]}, object()]
    assert build(given) is given


def test_a_flat_config_leaves_what_is_inside_to_its_class() -> None:
    made = build({"type": Holder, "head": {"type": Head, "width": 1}, "__build_recursive": False})
    assert made.head == {"type": Head, "width": 1}


def test_filters_of_a_plugin_become_its_declaration() -> None:
    made = build({"type": Heard, "every": "2 steps", "tasks": ["a"]})
    assert (declaration_of(made).every, declaration_of(made).tasks) == ("2 steps", ("a",))
    assert declaration_of(Heard()).every == ""


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "GradScal"}, "here: unknown type 'GradScal'; did you mean 'GradScale'"),
        ({"type": "qqqqqqqqqqqqq"}, "here: unknown type 'qqqqqqqqqqqqq'; accepted: a class, the"),
        ({"type": "torch.nn.Liner"}, "type 'torch.nn.Liner': torch.nn has no 'Liner'; did you"),
        ({"type": "nowhere.Net"}, "type 'nowhere.Net': no module 'nowhere'"),
        ({"type": Head, "widht": 1}, "here: Head: unknown option 'widht'; did you mean 'width'"),
        ({"type": Head}, "here: Head: missing option 'width'"),
        ([{"type": Holder, "head": {"type": Head}}], "here: Head: missing option 'width'"),
        ({"type": Heard, "every": "2 stepz"}, None),
    ],
)
def test_a_mistake_is_told_in_one_line(config: Any, message: str | None) -> None:
    if message is None:  # an interval is read when the plugin is registered
        with pytest.raises(HatbusError, match="2 stepz"):
            tiny_trainer([config])
        return
    with pytest.raises(PluginError, match=message) as caught:
        build(config, "here")
    assert "\n" not in str(caught.value)


def test_an_error_of_the_class_says_which_config() -> None:
    with pytest.raises(ValueError, match="no such file") as caught:
        build({"type": Fails}, "plugins")
    assert caught.value.__notes__ == ["while plugins: dict(type='Fails', ...) was built"]


def test_a_trainer_is_made_of_configs_alone() -> None:
    torch.manual_seed(0)
    trainer = Trainer(
        {"type": "Linear", "in_features": 3, "out_features": 1},  # type: ignore[arg-type]  # a config
        {"type": torch.optim.SGD, "lr": 0.05},  # type: ignore[arg-type]
        {
            "type": "DataLoader",
            "dataset": [(x[0], y[0]) for x, y in batches(4, size=1)],
            "batch_size": 2,
        },
        {"type": "MSELoss"},
        [{"type": Heard, "every": "2 steps"}, {"type": Heard}, {"type": "CosLrUpdater"}],
    )
    trainer.fit(num_epochs=2)
    members = trainer.bus.members
    heard: Any = [members[name].plugin for name in ("heard", "heard_2")]
    assert [one.steps for one in heard] == [[1, 3], [0, 1, 2, 3]]
    assert trainer.ctx.optimizer is not None
    assert trainer.ctx.optimizer.param_groups[0]["lr"] < 0.05


def test_one_config_alone_is_a_list_of_one_and_a_mapping_names_them() -> None:
    assert "heard" in tiny_trainer({"type": Heard}).bus.members
    assert "mine" in tiny_trainer({"mine": {"type": Heard}}).bus.members


def test_the_order_of_a_list_stays_where_stages_do_not_decide() -> None:
    order: list[str] = []

    class Notes(CallbackMixin):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_step_end(self, **kwargs: Any) -> None:
            order.append(self.name)

    names = ["z", "a", "m", "b"]
    tiny_trainer([{"type": Notes, "name": name} for name in names]).fit(num_steps=1)
    assert order == names


def test_params_of_an_optimizer_are_the_models_or_groups_by_pattern() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    plain = built_optimizer({"type": "SGD", "lr": 0.1}, model)
    assert [len(group["params"]) for group in plain.param_groups] == [4]
    grouped = built_optimizer(
        {"type": torch.optim.SGD, "lr": 0.1, "params": {r"^1\.": {"lr": 0.2}, "weight": {}}}, model
    )
    found = [(group["lr"], len(group["params"])) for group in grouped.param_groups]
    assert found == [(0.2, 2), (0.1, 1), (0.1, 1)]
    with pytest.raises(HatbusError, match=r"no parameter's name has 'nek'; as '0\.weight'"):
        built_optimizer({"type": "SGD", "lr": 0.1, "params": {"nek": {}}}, model)


class Takes(nn.Module):
    """HAT's form: parts of a batch are arguments, losses come back in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return {"loss": ((self.layer(x) - y) ** 2).mean()}


def test_a_processor_of_hats_transforms_and_unpacks_a_batch() -> None:
    seen: list[Any] = []

    class Inverse(CallbackMixin):
        def on_batch_end(self, model_outs: Any, **kwargs: Any) -> None:
            seen.append(model_outs["size"])

    processor = {
        "type": "MultiBatchProcessor",
        "need_grad_update": True,
        "batch_transforms": [lambda batch: (batch[0] * 2, batch[1] * 2)],
        "inverse_transforms": [lambda outs, batch: {**outs, "size": batch[0].sum().item()}],
    }
    trainer = tiny_trainer(
        [Inverse()], batches(1), model=Takes(), loss=None, batch_processor=processor
    )
    trainer.fit(num_steps=1)
    assert seen == [2 * batches(1)[0][0].sum().item()]
    with pytest.raises(HatbusError, match="enable_amp=True; in hatbus that is precision='fp16'"):
        HatBatchProcessor(enable_amp=True)
    with pytest.raises(HatbusError, match="unknown option 'enable_am'"):
        HatBatchProcessor(enable_am=True)


def test_a_marked_class_takes_filters_as_well() -> None:
    class Marked:
        def __init__(self) -> None:
            self.steps = 0

        @hookimpl
        def on_step_end(self) -> None:
            self.steps += 1

    made = build({"type": Marked, "every": "2 steps"})
    tiny_trainer([made], batches(4)).fit(num_epochs=1)
    assert made.steps == 2
