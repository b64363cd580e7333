"""A validation without listeners in between runs each batch in one piece: nobody can tell."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn
from validated import Net, batches, trainer

from hatbus import Context, hookimpl
from hatbus_validation.validation import Validation


class Hears:
    """Hears the end of batches; what it takes of each is what there is to see."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.errors: list[str] = []

    @hookimpl
    def on_batch_end(
        self, ctx: Context, batch: Any, model_outs: Any, losses: dict[str, Any], task: str | None
    ) -> None:
        if ctx.exception is not None:
            self.errors.append(str(ctx.exception))
            return
        place = ctx.step_id, ctx.global_step_id, ctx.position.step, len(ctx.batches)
        is_sames = ctx.losses is losses and ctx.batches[0][1] is batch
        found = {name: float(loss) for name, loss in losses.items()}
        self.seen.append((place, is_sames, task, float(model_outs.sum()), found))


class HearsSteps:
    @hookimpl
    def on_step_end(self) -> None: ...


class HearsBegins:
    @hookimpl
    def on_batch_begin(self) -> None: ...


class Surrounds:
    @hookimpl(wrapper=True)
    def run_batch(self) -> Any:
        return (yield)


class Skips:
    @hookimpl
    def skip_batch(self, ctx: Context) -> str | None:
        return None


class Forwards:
    @hookimpl(wrapper=True)
    def forward(self) -> Any:
        return (yield)


def seen(*others: object, data: Any = None, **options: Any) -> Hears:
    hears = Hears()
    options = {"loss": nn.functional.mse_loss} | options
    validation = Validation(data or batches(4), callbacks=[hears, *others])
    trainer(validation, **options).fit(num_epochs=2)
    return hears


@pytest.mark.parametrize("other", [HearsSteps, HearsBegins, Surrounds, Skips, Forwards])
def test_whoever_listens_everything_that_is_heard_is_the_same(other: type) -> None:
    alone, beside = seen(), seen(other())
    assert len(alone.seen) == 8
    assert alone.seen == beside.seen


def test_batches_of_another_form_and_losses_by_name_are_among_them() -> None:
    class Flexible(Net):
        def __init__(self) -> None:
            torch.manual_seed(0)
            super().__init__()

        def forward(self, inputs: Any) -> torch.Tensor:
            return super().forward(inputs["x"] if isinstance(inputs, dict) else inputs)

    def losses(outs: torch.Tensor, target: Any) -> Any:
        if isinstance(target, tuple):
            return [nn.functional.mse_loss(outs, target[0])]
        whole = nn.functional.mse_loss(outs, target)
        return whole if len(outs) == 4 else {"half": whole / 2, "loss": whole}

    plain, longer = batches(3), batches(1, size=6)
    inputs, target = plain[1]
    data = [plain[0], ({"x": inputs}, target), longer[0], (inputs, target, target), plain[2]]
    found = [
        seen(*others, data=data, model=Flexible(), loss=losses) for others in ((), (HearsSteps(),))
    ]
    assert found[0].seen == found[1].seen
    assert [set(one[-1]) for one in found[0].seen[:3]] == [{"loss"}, {"loss"}, {"half", "loss"}]


@pytest.mark.parametrize("others", [(), (HearsSteps(),)])
@pytest.mark.parametrize("where", ["model", "loss"])
def test_an_error_is_told_at_the_end_of_its_batch_and_is_nobodys_fault(
    where: str, others: tuple[object, ...]
) -> None:
    def fails_in(name: str, values: torch.Tensor) -> None:
        if where == name and len(values) == 6:
            raise ArithmeticError(f"in {name}")

    class Fails(Net):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            fails_in("model", inputs)
            return super().forward(inputs)

    def loss(outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        fails_in("loss", outs)
        return nn.functional.mse_loss(outs, target)

    hears = Hears()
    data = [*batches(3), *batches(1, size=6)]
    run = trainer(Validation(data, callbacks=[hears, *others]), model=Fails(), loss=loss)
    with pytest.raises(ArithmeticError) as raised:
        run.fit(num_epochs=1)
    assert hears.errors == [f"in {where}"]
    assert len(hears.seen) == 3
    notes = "".join(raised.value.__notes__)
    assert "step" in notes
    assert "'hears'" not in notes


def test_an_error_of_a_listener_is_its_own_and_the_others_hear_the_end_once() -> None:
    class Breaks:
        @hookimpl
        def on_batch_end(self, ctx: Context) -> None:
            if ctx.step_id == 2:
                raise ArithmeticError("breaks")

    hears = Hears()
    run = trainer(Validation(batches(4), callbacks=[Breaks(), hears]))
    with pytest.raises(ArithmeticError) as raised:
        run.fit(num_epochs=1)
    assert "plugin 'breaks'" in "".join(raised.value.__notes__)
    assert (len(hears.seen), hears.errors) == (2, ["breaks"])


def test_who_comes_in_the_middle_hears_the_next_batch() -> None:
    class Joins:
        def __init__(self) -> None:
            self.steps = 0

        @hookimpl
        def on_step_end(self) -> None:
            self.steps += 1

    class Brings:
        def __init__(self) -> None:
            self.joins = Joins()

        @hookimpl
        def on_batch_end(self, ctx: Context) -> None:
            if ctx.step_id == 1:
                ctx.bus.register(Later(self.joins), "later")

    class Later:
        def __init__(self, joins: Joins) -> None:
            self.joins = joins

        @hookimpl
        def on_batch_begin(self) -> None:
            self.joins.steps += 1

    brings = Brings()
    trainer(Validation(batches(5), callbacks=[brings])).fit(num_epochs=1)
    assert brings.joins.steps == 3


@pytest.mark.parametrize("others", [(), (HearsSteps(),)])
def test_the_log_is_told_how_far_it_is_at_the_interval(
    others: tuple[object, ...], caplog: pytest.LogCaptureFixture
) -> None:
    hears = [Hears(), *others]
    with caplog.at_level(logging.INFO, "hatbus"):
        trainer(Validation(batches(7), callbacks=hears, log_interval=3)).fit(num_epochs=1)
    said = [one.getMessage().partition(",")[0] for one in caplog.records]
    lines = [one for one in said if one.startswith("validation: step")]
    assert lines == ["validation: step 3 of 7", "validation: step 6 of 7"]


def test_a_progress_bar_is_told_of_every_step() -> None:
    told: list[tuple[str, int, int | None]] = []

    class Bar:
        @hookimpl(tryfirst=True)
        def on_loop_begin(self, ctx: Context) -> None:
            ctx.storage["progress"] = lambda *what: told.append(what)

    validation = Validation(
        {"a": batches(2), "b": iter_of(3)}, callbacks=[Hears()], log_interval=None
    )
    trainer(Bar(), validation).fit(num_epochs=1)
    a, b = "validation of 'a'", "validation of 'b'"
    assert told == [(a, 1, 2), (a, 2, 2), (b, 1, None), (b, 2, None), (b, 3, None)]


class iter_of:  # noqa: N801 - a loader without a length
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Any:
        return iter(batches(self.count))
