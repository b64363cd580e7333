"""The loop: counting, requests, decisions, precision, and what a user's mistake looks like."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tiny import batches, hearing, tiny_trainer, weights

from hatbus import Trainer, hookimpl
from hatbus.data.task_sampler import AllTasks
from hatbus.errors import HatbusError, JobError, NonFiniteError
from hatbus.loop.context import Context
from hatbus.loop.loop import groups_of


def by_hand(steps: int) -> torch.Tensor:
    """The tiny run as everybody would write it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data = batches(3)
    for step in range(steps):
        inputs, target = data[step % 3]
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), target).backward()
        optimizer.step()
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def test_a_run_is_bit_identical_to_the_loop_written_by_hand() -> None:
    trainer = tiny_trainer()
    trainer.fit(num_epochs=4)
    assert weights(trainer).equal(by_hand(12))


def test_every_step_begins_without_gradients() -> None:
    trainer = tiny_trainer()
    found: list[Any] = []

    def note(event: str, values: dict[str, Any]) -> None:
        found.append([p.grad is None for p in values["model"].parameters()])

    trainer.bus.register(hearing(["on_batch_begin", "on_backward_end"], note), "hears")
    trainer.fit(num_steps=2)
    assert found == [[True, True], [False, False]] * 2


class ClearsItsOwnWay(torch.optim.SGD):
    """Zeros gradients in place, and counts."""

    cleared = 0

    def zero_grad(self, set_to_none: bool = False) -> None:
        self.cleared += 1
        super().zero_grad(set_to_none)


class Around:
    """An optimizer of no class of torch's, around one that is."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.cleared = inner, 0
        self.param_groups = inner.param_groups

    def step(self) -> None:
        self.inner.step()

    def zero_grad(self) -> None:
        self.cleared += 1
        self.inner.zero_grad()


@pytest.mark.parametrize("kind", ["subclass", "wrapper", "instance", "everywhere"])
def test_a_zero_grad_that_is_not_torchs_own_is_called(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_trainer()
    parameters = trainer.ctx.model.parameters()
    optimizer: Any = (ClearsItsOwnWay if kind == "subclass" else torch.optim.SGD)(
        parameters, lr=0.05
    )
    owner: Any = optimizer
    if kind == "wrapper":
        optimizer = owner = Around(optimizer)
    elif kind != "subclass":
        owner = optimizer if kind == "instance" else torch.optim.Optimizer
        torchs_own = owner.zero_grad
        monkeypatch.setattr(owner, "cleared", 0, raising=False)

        def zero_grad(*args: Any) -> None:
            owner.cleared += 1
            torchs_own(*args)

        monkeypatch.setattr(owner, "zero_grad", zero_grad)
    trainer.ctx.optimizer = optimizer
    trainer.fit(num_steps=4)
    assert owner.cleared == 4
    assert weights(trainer).equal(by_hand(4))


def test_a_profiler_sees_gradients_being_cleared() -> None:
    with torch.profiler.profile() as seen:
        tiny_trainer().fit(num_steps=3)
    labels = [event.name for event in seen.events() or ()]
    assert labels.count("Optimizer.zero_grad#SGD.zero_grad") == 3


def test_a_plan_in_steps_stops_in_the_middle_of_an_epoch() -> None:
    trainer = tiny_trainer()
    trainer.fit(num_steps=7)
    assert weights(trainer).equal(by_hand(7))
    assert (trainer.ctx.epoch_id, trainer.ctx.step_id) == (2, 0)
    assert trainer.ctx.updates == 7


def test_a_second_fit_goes_on_where_the_first_stopped() -> None:
    trainer = tiny_trainer()
    trainer.fit(num_steps=4)
    trainer.fit(num_epochs=3)
    assert weights(trainer).equal(by_hand(9))


def asking(wish: str, *, step: int, **arguments: Any) -> object:
    class Asks:
        @hookimpl
        def on_step_end(self, ctx: Context, global_step_id: int) -> None:
            if global_step_id == step:
                getattr(ctx.control, wish)(**arguments)

    return Asks()


def test_a_stop_of_the_run_is_served_after_the_step_and_logged_with_its_author(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = tiny_trainer({"asks": asking("stop", step=3, what="run", reason="enough")})
    with caplog.at_level(logging.INFO, "hatbus"):
        trainer.fit(num_epochs=9)
    assert trainer.ctx.global_step_id == 3
    assert "stop run: asked for by asks (enough)" in caplog.text


def test_a_stop_of_the_epoch_begins_the_next_one() -> None:
    steps: list[tuple[int, int]] = []
    recorder = hearing(["on_step_end"], lambda _, v: steps.append((v["epoch_id"], v["step_id"])))
    plugins = {"asks": asking("stop", step=1, what="epoch", reason="dull"), "rec": recorder}
    tiny_trainer(plugins).fit(num_epochs=2)
    assert steps == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_a_request_that_nobody_serves_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    tiny_trainer({"asks": asking("save", step=0, reason="fear")}).fit(num_steps=2)
    assert "save: asked for by asks, but nothing did it" in caplog.text


def test_an_unknown_stop_is_refused() -> None:
    with pytest.raises(HatbusError, match="cannot stop 'world'; accepted: 'epoch', 'run'"):
        tiny_trainer([asking("stop", step=0, what="world")]).fit(num_steps=1)


def test_a_skipped_update_is_a_step_and_no_update(caplog: pytest.LogCaptureFixture) -> None:
    class Skips:
        @hookimpl
        def skip_update(self, global_step_id: int) -> str | None:
            return "because" if global_step_id < 3 else None

    trainer = tiny_trainer({"skips": Skips()})
    with caplog.at_level(logging.INFO, "hatbus"):
        trainer.fit(num_steps=5)
    assert (trainer.ctx.global_step_id, trainer.ctx.updates) == (4, 2)
    assert "step 0: update skipped by skips (because)" in caplog.text


def test_a_skipped_batch_is_left_out_and_a_step_without_batches_makes_no_update() -> None:
    class Skips:
        @hookimpl
        def skip_batch(self, global_step_id: int) -> str | None:
            return "dirty" if global_step_id == 1 else None

    ran: list[str] = []
    recorder = hearing(["on_batch_end"], lambda e, _: ran.append(e))
    trainer = tiny_trainer({"skips": Skips(), "rec": recorder})
    trainer.fit(num_steps=3)
    assert len(ran) == 2
    assert trainer.ctx.updates == 2


def test_what_is_kept_of_a_groups_micro_batches_is_averaged_over_what_is_kept() -> None:
    data = batches(3)

    class SkipsTheSecond:
        @hookimpl
        def skip_batch(self, batch: Any) -> str | None:
            return "dirty" if batch[0] is data[1][0] else None

    skipping = tiny_trainer([SkipsTheSecond()], data, accumulate=3)
    skipping.fit(num_steps=1)
    without = tiny_trainer(data=[data[0], data[2]], accumulate=3)
    without.fit(num_steps=1)
    torch.testing.assert_close(weights(skipping), weights(without), rtol=0, atol=1e-7)


def test_a_skipped_batch_changes_nothing_for_other_groups_and_tasks() -> None:
    weighed: list[tuple[str, float]] = []

    class Skips:
        def __init__(self) -> None:
            self.asked = 0

        @hookimpl
        def skip_batch(self, ctx: Context) -> str | None:
            self.asked += 1
            return "first of a" if self.asked == 1 else None

        @hookimpl
        def on_batch_end(self, ctx: Context) -> None:
            weighed.append((ctx.task, ctx.weight))

    sampler = AllTasks({"a": 2})
    data = {"a": batches(4), "b": batches(2, seed=1)}
    tiny_trainer([Skips()], data, accumulate=2, task_sampler=sampler).fit(num_steps=1)
    assert weighed == [("a", 1.0), ("a", 0.5), ("a", 0.5), ("b", 0.5), ("b", 0.5)]


def test_groups_are_told_apart_where_a_short_one_comes_before_a_whole_one() -> None:
    one = [("a", "x", 1.0), ("a", "y", 0.5), ("a", "z", 0.5), ("b", "u", 0.5), ("b", "v", 0.5)]
    assert [[batch for _, batch, _ in group] for group in groups_of(one)] == [
        ["x"],
        ["y", "z"],
        ["u", "v"],
    ]


def test_a_decision_that_is_no_reason_is_refused() -> None:
    class Skips:
        @hookimpl
        def skip_update(self) -> bool:
            return True

    with pytest.raises(HatbusError, match="is a decision and returned True; accepted: a reason"):
        tiny_trainer([Skips()]).fit(num_steps=1)


def test_a_vetoed_checkpoint_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    class Vetoes:
        @hookimpl
        def veto_checkpoint(self, reason: str) -> str:
            return f"not for {reason}"

    class Saves:
        @hookimpl
        def save_checkpoint(self) -> str:
            raise AssertionError("vetoed")

    trainer = tiny_trainer({"vetoes": Vetoes(), "saves": Saves()})
    with caplog.at_level(logging.INFO, "hatbus"):
        assert trainer.ctx.save("fun") is False
    assert "no checkpoint (fun): vetoed by vetoes (not for fun)" in caplog.text


def nan_after(step: int) -> Any:
    calls = []

    def loss(outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        value = torch.nn.functional.mse_loss(outs, target)
        return value * float("nan") if len(calls) > step else value

    return loss


def test_a_nan_loss_ends_the_run_before_it_reaches_the_weights() -> None:
    trainer = tiny_trainer(loss=nan_after(4))
    with pytest.raises(NonFiniteError, match="loss 'loss' is nan in step 4; lower the learning"):
        trainer.fit(num_epochs=3)
    assert weights(trainer).equal(by_hand(4))


def test_nan_losses_may_be_skipped_but_not_for_ever() -> None:
    trainer = tiny_trainer(loss=nan_after(2), nan="skip_step")
    with pytest.raises(NonFiniteError, match="after 10 skipped steps in a row"):
        trainer.fit(num_steps=50)
    assert trainer.ctx.global_step_id == 12
    assert weights(trainer).equal(by_hand(2))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, t: 3.0, "loss 'loss' is a float; accepted: a 0-d tensor"),
        (lambda o, t: o - t, r"loss 'loss' is a tensor of shape \(4, 1\)"),
        (lambda o, t: {}, "there is no loss"),
    ],
)
def test_a_loss_that_is_none_is_explained(loss: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        tiny_trainer(loss=loss).fit(num_steps=1)


def test_a_model_may_return_its_own_losses() -> None:
    class Model(torch.nn.Linear):
        def forward(self, batch: Any) -> Any:
            out = super().forward(batch[0])
            value = torch.nn.functional.mse_loss(out, batch[1])
            return {"prediction": out, "mse_loss": value, "other_loss": 0 * value}

    torch.manual_seed(0)
    trainer = tiny_trainer(model=Model(3, 1), loss=lambda: None)
    trainer = type(trainer)(trainer.ctx.model, trainer.ctx.optimizer, batches(3))
    trainer.fit(num_steps=2)
    assert sorted(trainer.ctx.losses) == ["mse_loss", "other_loss"]


def small_scale(trainer: Trainer) -> None:
    """Begins fp16 with a loss scale that does not overflow in the first steps."""
    if trainer.ctx.scaler is not None:
        trainer.ctx.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_close_to_full_precision(precision: str) -> None:
    seen: list[torch.dtype] = []
    recorder = hearing(["on_forward_end"], lambda _, v: seen.append(v["model_outs"].dtype))
    trainer = tiny_trainer([recorder], precision=precision)
    small_scale(trainer)
    trainer.fit(num_epochs=4)
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert torch.allclose(weights(trainer), by_hand(12), atol=0.02)


def test_an_overflow_in_fp16_is_no_update() -> None:
    trainer = tiny_trainer(
        precision="fp16",
        nan="ignore",
        loss=lambda o, t: torch.nn.functional.mse_loss(o, t) * float("inf"),
    )
    before = weights(trainer)
    trainer.fit(num_steps=2)
    assert trainer.ctx.updates == 0
    assert weights(trainer).equal(before)
    assert trainer.ctx.scaler.get_scale() == 65536.0 / 4


def test_a_skipped_update_in_fp16_leaves_the_scaler_ready() -> None:
    class Skips:
        @hookimpl
        def skip_update(self, global_step_id: int) -> str | None:
            return "now" if global_step_id == 0 else None

    trainer = tiny_trainer([Skips()], precision="fp16")
    small_scale(trainer)
    trainer.fit(num_steps=3)
    assert trainer.ctx.updates == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"nan": "hope"}, "unknown nan policy 'hope'"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_a_wrong_argument_of_the_trainer_is_explained(options: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        tiny_trainer(**options)


@pytest.mark.parametrize("plan", [{}, {"num_epochs": 1, "num_steps": 1}, {"num_epochs": 0}])
def test_a_plan_is_epochs_or_steps(plan: Any) -> None:
    with pytest.raises(JobError, match="num_epochs"):
        tiny_trainer().fit(**plan)


def test_a_batch_that_is_no_pair_is_explained() -> None:
    with pytest.raises(JobError, match="a batch is a Tensor, not a pair"):
        tiny_trainer(data=[torch.zeros(2, 3)]).fit(num_steps=1)


def test_published_values_reach_every_sink_and_the_last_is_kept() -> None:
    class Publishes:
        @hookimpl
        def on_step_end(self, ctx: Context, losses: dict[str, torch.Tensor]) -> None:
            ctx.log({"loss": losses["loss"]})

    logs: list[Any] = []
    sink = hearing(["on_log"], lambda _, v: logs.append((v["kind"], list(v["logs"]))))
    trainer = tiny_trainer({"pub": Publishes(), "sink": sink})
    trainer.fit(num_steps=2)
    assert logs == [("scalar", ["loss"])] * 2
    assert isinstance(trainer.ctx.latest["loss"], torch.Tensor)


def test_the_model_may_be_compiled() -> None:
    trainer = tiny_trainer(compile={"backend": "eager"})
    trainer.fit(num_epochs=4)
    assert torch.allclose(weights(trainer), by_hand(12))
    assert trainer.ctx.wrapped_model is not trainer.ctx.model
