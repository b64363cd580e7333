"""What a trainer refuses to be made of, in one line."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from tiny import MeanLoss, batches, tiny_trainer, weights
from torch.nn.functional import mse_loss

from hatbus import BatchProcessor, Trainer, hookimpl
from hatbus.discovery.first_party import FIRST_PARTY
from hatbus.errors import JobError, PluginError
from hatbus.foreign_arguments import ARGUMENTS, PLUGINS

SGD = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def made(**given: Any) -> Trainer:
    """A trainer of a linear model, with something else in place of one of its parts."""
    model = torch.nn.Linear(3, 1)
    parts: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05),
        "data": batches(3),
        "loss": mse_loss,
    }
    return Trainer(**{**parts, **given})


@pytest.mark.parametrize(
    ("plugins", "start"),
    [
        (["cos_lr"], "'cos_lr' is no plugin but a str; plugins takes a list of instances, as"),
        ([(MeanLoss, "x")], "(<class 'tiny.MeanLoss'>, 'x') is no plugin but a tuple; plugins"),
        ({"lr": None}, "None is no plugin but a NoneType; plugins takes"),
        ("cos_lr", "plugins is 'cos_lr'; accepted: a list of instances, as [EMA()], or a mapping"),
        (MeanLoss(), "plugins is <tiny.MeanLoss object at"),
        ([MeanLoss], "plugin 'mean_loss' is the class MeanLoss; give an instance of it"),
        (
            [torch.optim.lr_scheduler.StepLR(SGD, 1)],
            "plugin 'step_lr' is no plugin: a StepLR is a scheduler; give TorchLr in its place, as",
        ),
        ([SGD], "plugin 'sgd' is no plugin: a SGD is an optimizer; give it as optimizer="),
        ([torch.nn.L1Loss()], "plugin 'l1_loss' is no plugin: a L1Loss is a module; a loss is"),
    ],
)
def test_what_is_no_list_of_plugins_is_refused_with_what_is_one(plugins: Any, start: str) -> None:
    with pytest.raises(PluginError) as caught:
        made(plugins=plugins)
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    ("part", "value", "start"),
    [
        ("optimizer", None, "optimizer is None; accepted: one instance, as torch.optim.SGD("),
        ("optimizer", torch.optim.SGD, "optimizer is the class SGD; accepted: one instance"),
        ("loss", "mse", "loss is 'mse'; accepted: loss(model_outs, target), as torch.nn"),
        ("loss", torch.nn.MSELoss, "loss is the class MSELoss; accepted: loss(model_outs"),
        ("loss", {"det": None}, "loss of task 'det' is None; accepted: loss(model_outs"),
        ("optimizer", [SGD, SGD], "optimizer is a list of 2; accepted: one instance, as torch.opt"),
        ("optimizer", {"a": SGD}, "optimizer is a dict of 1; accepted: one instance, as torch.opt"),
        ("accumulate", "2", "accumulate is '2'; accepted: a whole number of at least 1"),
        ("precision", torch.bfloat16, "unknown precision torch.bfloat16; known: 'bf16', 'fp16'"),
        ("device", None, "unknown device None; accepted: 'auto', 'cpu', 'cuda', 'cuda:1'"),
        ("run_dir", 3, "run_dir is 3; accepted: a path"),
        ("task_sampler", "one", "task_sampler is 'one'; accepted: a sampler, as OneTask() of"),
        ("max_epochs", 3, "Trainer() has no argument 'max_epochs'; give num_epochs= to fit()"),
        ("callbacks", [], "Trainer() has no argument 'callbacks'; give plugins="),
        ("val_loader", [], "Trainer() has no argument 'val_loader'; add Validation of hatbus.call"),
        ("strategy", "ddp", "Trainer() has no argument 'strategy'; start the processes with torch"),
        ("plugin", [], "Trainer() has no argument 'plugin'; did you mean 'plugins'?"),
        ("model", torch.nn.Linear, "model is the class Linear; accepted: a torch.nn.Module"),
    ],
)
def test_what_is_no_model_optimizer_or_loss_is_refused(part: str, value: Any, start: str) -> None:
    with pytest.raises(JobError) as caught:
        made(**{part: value})
    assert str(caught.value).startswith(start)


def test_an_optimizer_that_holds_nothing_of_the_model_is_refused() -> None:
    others = torch.optim.SGD(torch.nn.Linear(3, 1).parameters(), lr=0.05)
    with pytest.raises(JobError, match="none of the model's 2 trainable parameters, so nothing"):
        made(optimizer=others)


def test_an_optimizer_may_train_something_else_where_that_can_be_meant() -> None:
    class Own(BatchProcessor):
        """Might train what is no part of the model."""

    frozen = torch.nn.Linear(3, 1).requires_grad_(False)
    others = torch.optim.SGD(torch.nn.Linear(3, 1).parameters(), lr=0.05)
    made(model=frozen, optimizer=others)
    made(model=torch.nn.Identity(), optimizer=others)
    made(loss=None, batch_processor=Own(mse_loss), optimizer=others)
    with pytest.raises(JobError, match="none of the model's"):
        made(loss=None, batch_processor=BatchProcessor(mse_loss), optimizer=others)


def test_an_optimizer_of_some_of_the_parameters_of_a_wrapped_model_trains_them() -> None:
    model = torch.nn.Linear(3, 1)
    for wrapped in (model, torch.nn.Sequential(model), torch.compile(model, backend="eager")):
        before = model.bias.detach().clone()
        run = made(model=wrapped, optimizer=torch.optim.SGD([model.bias], lr=0.05))
        run.fit(num_steps=1)
        assert not model.bias.equal(before)


def test_a_batch_of_three_is_the_inputs_and_a_target_of_the_other_two() -> None:
    def loss(found: torch.Tensor, target: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        wanted, weight = target
        return (weight * (found - wanted) ** 2).mean()

    data = [(inputs, target, torch.ones(1)) for inputs, target in batches(3)]
    run, plain = tiny_trainer(data=data, loss=loss), tiny_trainer()
    run.fit(num_epochs=1)
    plain.fit(num_epochs=1)
    assert torch.allclose(weights(run), weights(plain))


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ({"max_epochs": 3}, "fit() has no argument 'max_epochs'; give num_epochs="),
        (
            {"train_dataloaders": []},
            "fit() has no argument 'train_dataloaders'; give data= to Train",
        ),
        ({"num_epoch": 3}, "fit() has no argument 'num_epoch'; did you mean 'num_epochs'?"),
        ({"num_epochs": "3"}, "num_epochs is '3'; accepted: a whole number of at least 1"),
        ({"num_steps": 0}, "num_steps is 0; accepted: a whole number of at least 1"),
        ({"num_steps": 2.5}, "num_steps is 2.5; accepted: a whole number of at least 1"),
        (
            {"num_epochs": [1]},
            "num_epochs is [1]; accepted: a whole number of at least 1; data is g",
        ),
        ({}, "give num_epochs= or num_steps=, one of the two"),
    ],
)
def test_what_is_no_plan_is_refused(given: Any, start: str) -> None:
    with pytest.raises(JobError) as caught:
        made().fit(**given)
    assert str(caught.value).startswith(start)


def test_a_missing_part_is_named_and_what_is_needed() -> None:
    with pytest.raises(JobError, match=r"'optimizer'; it needs model, optimizer, data$"):
        Trainer(torch.nn.Linear(3, 1), data=batches(3))  # type: ignore[call-arg]


def test_every_word_of_another_trainers_means_something_here_and_one_thing() -> None:
    trainer, fit = (inspect.signature(f).parameters for f in (Trainer, Trainer.fit))
    words = [w for table in (ARGUMENTS, PLUGINS) for text in table.values() for w in text.split()]
    assert set(ARGUMENTS) <= {*trainer, *fit}
    assert set(PLUGINS) <= set(FIRST_PARTY)
    assert len(words) == len(set(words))
    assert not set(words) & {*trainer, *fit}


def test_an_optimizer_that_wants_a_closure_is_refused_before_the_first_step() -> None:
    model = torch.nn.Linear(3, 1)
    trainer = made(model=model, optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(
        JobError, match=r"optimizer LBFGS wants a closure .* plugin closure .*-p closure"
    ):
        trainer.fit(num_epochs=1)


def test_a_plugin_can_give_an_optimizer_its_closure() -> None:
    class Closes:
        @hookimpl
        def optimizer_step(self, ctx: Any) -> bool:
            (inputs, target) = ctx.batch

            def closure() -> torch.Tensor:
                ctx.optimizer.zero_grad()
                loss = mse_loss(ctx.model(inputs), target)
                loss.backward()
                return loss

            ctx.optimizer.step(closure)
            return True

    def lbfgs(model: torch.nn.Module) -> torch.optim.LBFGS:
        return torch.optim.LBFGS(model.parameters(), max_iter=3)

    torch.manual_seed(0)
    model, alone = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    alone.load_state_dict(model.state_dict())
    trainer = made(model=model, optimizer=lbfgs(model), plugins=[Closes()])
    trainer.fit(num_epochs=1)
    by_itself = lbfgs(alone)
    for inputs, target in batches(3):

        def closure(inputs: torch.Tensor = inputs, target: torch.Tensor = target) -> torch.Tensor:
            by_itself.zero_grad()
            loss = mse_loss(alone(inputs), target)
            loss.backward()
            return loss

        by_itself.step(closure)
    assert trainer.ctx.updates == 3
    assert torch.equal(model.weight, alone.weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch would like another format
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 3))])
def test_a_model_in_torchscript_trains_as_the_model_it_was_made_of(make: Any) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(3, 1)
    model = make(copy.deepcopy(plain))
    for one in (plain, model):
        made(model=one, optimizer=torch.optim.SGD(one.parameters(), lr=0.05)).fit(num_epochs=2)
    assert torch.equal(model.weight, plain.weight)


def test_a_task_without_a_loss_is_refused_before_the_first_step() -> None:
    tasks = {"det": batches(3), "seg": batches(3)}
    trainer = made(data=tasks, loss={"det": mse_loss, "sge": mse_loss})
    with pytest.raises(JobError, match=r"no loss for task 'seg'; did you mean 'sge'\?"):
        trainer.fit(num_steps=1)
    assert trainer.ctx.position.global_step == 0


def test_a_plugin_may_reckon_the_losses_of_a_task_that_has_none() -> None:
    class Reckons:
        @hookimpl
        def compute_loss(self, model_outs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": model_outs.square().mean()}

    tasks = {"det": batches(3), "seg": batches(3)}
    made(data=tasks, loss={"det": mse_loss}, plugins=[Reckons()]).fit(num_steps=1)
