"""What is different in other trainers, and what they refuse, with themselves: `tox -e hosts`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import host_loops as loops
import host_nine
import pytest
import torch
from host_loops import HOSTS, STEPS, new_model
from host_nine import nine
from host_run import FOREIGN, Counts, Fails, Told, run

from hatbus import HatbusError, hookimpl


class Sees:
    """Takes the learning rate, and whether there are gradients, at every step's end."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.gradients: list[bool] = []
        self.norms: list[float] = []

    @hookimpl(wrapper=True)
    def clip_gradients(self, ctx: Any) -> Iterator[None]:
        grads = [p.grad for p in ctx.model.parameters()]
        self.norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))))
        return (yield)

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        self.rates.append(ctx.optimizer.param_groups[0]["lr"])
        self.gradients.append(all(p.grad is not None for p in ctx.model.parameters()))


@pytest.mark.parametrize("name", FOREIGN)
def test_a_host_has_no_more_attributes_than_python_keeps_in_an_object(
    name: str, tmp_path: Path
) -> None:
    """With more than 30 each of them, and each method, takes longer to find."""
    _, host = run(name, {}, tmp_path, 1)
    assert len(vars(host)) <= 30


def test_the_learning_rate_at_a_steps_end_is_the_steps_own_in_transformers(tmp_path: Path) -> None:
    sees = Sees()
    run("transformers", [sees], tmp_path, arguments={"lr_scheduler_type": "linear"})
    rates = [0.1 * (1 - step / (2 * STEPS)) for step in range(2 * STEPS)]
    assert sees.rates == pytest.approx(rates)
    assert all(sees.gradients)  # which the trainer has cleared when it says so itself


def test_the_learning_rate_at_a_steps_end_is_the_steps_own_in_lightning() -> None:
    sees, model = Sees(), new_model()
    from hatbus_hosts import LightningHost

    module = loops.lightning_module(model)
    optimizer = loops.new_optimizer(model)
    halving = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    module.configure_optimizers = lambda: (
        [optimizer],
        [{"scheduler": halving, "interval": "step"}],
    )
    host = LightningHost([sees], model="net")
    loops.lightning_trainer([host], 1).fit(module, loops.new_loader())
    assert sees.rates == pytest.approx([0.1 * 0.5**step for step in range(STEPS)])


def test_transformers_has_clipped_before_plugins_look(tmp_path: Path) -> None:
    free, clipped = Sees(), Sees()
    run("transformers", [free], tmp_path)
    run("transformers", [clipped], tmp_path, arguments={"max_grad_norm": 0.1})
    assert free.norms[0] > 1
    assert clipped.norms[0] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("host", "options", "advice"),
    [
        ("transformers", {"arguments": {"max_grad_norm": 1.0}}, "max_grad_norm=0"),
        ("lightning", {"trainer": {"gradient_clip_val": 1.0}}, "gradient_clip_val"),
    ],
)
def test_two_that_clip_are_refused(
    host: str, options: dict[str, Any], advice: str, tmp_path: Path
) -> None:
    with pytest.raises(HatbusError, match=f"both write 'grad.clip'; .*{advice}"):
        run(host, {"grad_clip": nine(tmp_path)["grad_clip"]}, tmp_path, **options)


def test_two_that_set_the_learning_rate_are_refused(tmp_path: Path) -> None:
    from hatbus.callbacks import CosLrUpdater

    with pytest.raises(HatbusError, match=r"both write 'optimizer.lr'; .*'constant'"):
        run("transformers", [CosLrUpdater()], tmp_path, arguments={"lr_scheduler_type": "linear"})
    updater = CosLrUpdater()
    run("transformers", [updater], tmp_path)


def test_a_model_that_divides_by_the_items_of_a_step_has_its_losses_added_up(
    tmp_path: Path,
) -> None:
    """Which Transformers leaves to models that take ``num_items_in_batch``."""
    import transformers

    class Divides(loops.Net):
        def forward(
            self, x: Any, labels: Any = None, num_items_in_batch: Any = None, **_: Any
        ) -> dict[str, Any]:
            outs = self.head(self.body(x))
            assert num_items_in_batch == 2 * loops.BATCH
            return {"loss": (outs - labels).square().sum() / num_items_in_batch, "outs": outs}

    torch.manual_seed(0)
    model, counts = Divides(), Counts()
    from hatbus_hosts import TransformersHost

    trainer = loops.transformers_trainer(
        model,
        [TransformersHost([counts], logs=False)],
        1,
        folder=tmp_path,
        arguments={"gradient_accumulation_steps": 2, "label_names": ["labels"]},
    )
    trainer.train_dataset = [{"x": one["x"], "labels": one["y"]} for one in loops.samples()]
    assert isinstance(trainer, transformers.Trainer)
    trainer.train()
    theirs = Counts()
    run("accelerate", [theirs], tmp_path, epochs=1, accumulate=2)
    assert counts.losses == pytest.approx(theirs.losses, rel=1e-6)


def test_lightnings_checkpoint_holds_the_step_that_it_is_saved_after(tmp_path: Path) -> None:
    from pytorch_lightning.callbacks import ModelCheckpoint

    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    _, host = run(
        "lightning",
        {"stranger": host_nine.Stranger()},
        tmp_path,
        epochs=1,
        callbacks=[saver],
        trainer={"enable_checkpointing": True},
    )
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    (state,) = (s for key, s in saved["callbacks"].items() if key == host.state_key)
    assert saved["global_step"] == 3
    assert state["position"] == [0, 3, 3]
    assert state["plugins"]["stranger"]["steps"] == 3


@pytest.mark.parametrize("host", FOREIGN)
def test_a_plugin_that_fails_is_blamed_and_the_hosts_own_handling_stays(
    host: str, tmp_path: Path
) -> None:
    told = Told()
    with pytest.raises(ZeroDivisionError) as caught:
        run(host, {"bad": Fails(), "told": told}, tmp_path)
    assert "in plugin 'bad'" in caught.value.__notes__[0]
    assert "on_step_end, step 2" in caught.value.__notes__[0]
    assert told.events == ["on_exception mine", "on_loop_end"]


@pytest.mark.parametrize("host", FOREIGN)
def test_an_error_of_the_model_ends_the_run_for_plugins_too(host: str, tmp_path: Path) -> None:
    class Broken(loops.Net):
        def forward(self, x: Any, y: Any = None) -> Any:
            raise ZeroDivisionError("the model's")

    told = Told()
    options: dict[str, Any] = {"folder": tmp_path} if host == "transformers" else {}
    with pytest.raises(ZeroDivisionError):
        HOSTS[host](Broken(), [told], 1, **options)
    assert told.events == ["on_exception the model's", "on_loop_end"]


def test_ignite_swallows_an_error_only_where_the_user_listens(tmp_path: Path) -> None:
    from ignite.engine import Events

    heard: list[str] = []

    def prepare(engine: Any, host: Any, optimizer: Any) -> None:
        def stop(error: Any) -> None:
            heard.append(str(error))
            engine.terminate()

        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda _, error: stop(error))

    told = Told()
    run("ignite", [Fails(), told], tmp_path, prepare=prepare)
    assert heard == ["mine"]
    assert told.events == ["on_exception mine", "on_loop_end"]


def test_transformers_tells_nobody_of_errors_so_the_next_run_closes_the_last(
    tmp_path: Path,
) -> None:
    from hatbus_hosts import TransformersHost

    told, model = Told(), new_model()
    host = TransformersHost([told])
    trainer = loops.transformers_trainer(model, [host], 1, folder=tmp_path)
    forward, model.forward = model.forward, None
    with pytest.raises(TypeError):
        trainer.train()
    assert told.events == []
    model.forward = forward
    trainer.train()
    assert told.events[-1] == "on_loop_end"
    assert len(told.events) == 3


# ---- bad input -----------------------------------------------------------------------------------


def test_a_host_that_is_put_in_while_the_run_is_on_is_refused(tmp_path: Path) -> None:
    import transformers

    from hatbus_hosts import TransformersHost

    class Late(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                trainer.add_callback(TransformersHost([Told()]))

    trainer = loops.transformers_trainer(new_model(), [Late()], 1, folder=tmp_path)
    with pytest.raises(HatbusError, match="TransformersHost was attached in the middle of a run"):
        trainer.train()


def test_several_optimizers_are_refused() -> None:
    from hatbus_hosts import LightningHost

    model = new_model()
    module = loops.lightning_module(model)
    module.automatic_optimization = False
    module.configure_optimizers = lambda: [loops.new_optimizer(model), loops.new_optimizer(model)]
    with pytest.raises(HatbusError, match="made for one optimizer, and the module has 2"):
        loops.lightning_trainer([LightningHost([Told()])], 1).fit(module, loops.new_loader())


def test_a_submodule_that_is_not_there_is_named() -> None:
    from hatbus_hosts import LightningHost

    host = LightningHost([Told()], model="nett")
    with pytest.raises(HatbusError, match=r"no module 'nett'; did you mean 'net'"):
        loops.lightning_trainer([host], 1).fit(
            loops.lightning_module(new_model()), loops.new_loader()
        )
