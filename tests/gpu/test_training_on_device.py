"""Training on the device: the same numbers as on the host, in every precision."""

from __future__ import annotations

import shutil
from collections import defaultdict
from typing import Any

import pytest
import torch
from gpu.on_device import DEVICE, Losses, Net, batches, trainer
from torch import nn
from torch.nn.utils import rnn

from hatbus import Trainer, hookimpl
from hatbus.data.moving import to_device
from hatbus.errors import JobError, NonFiniteError

STEPS = 12


class Plain(nn.Module):
    """Without dropout, whose random numbers differ between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(108, 32), nn.Linear(32, 4)

    def forward(self, inputs: torch.Tensor, task: str | None = None) -> torch.Tensor:
        return self.second(torch.tanh(self.first(inputs.flatten(1))))


def losses_of(device: str, **options: Any) -> list[float]:
    losses = Losses()
    run = trainer([losses], model=Plain, device=device, **options)
    run.fit(num_steps=STEPS)
    return losses.numbers


@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-4), ("bf16", 5e-2), ("fp16", 1e-2)])
def test_losses_are_those_of_the_host(precision: str, close: float) -> None:
    found = losses_of(DEVICE, precision=precision)
    assert len(found) == STEPS
    assert found == pytest.approx(losses_of("cpu"), abs=close)


def test_losses_of_two_tasks_and_of_micro_batches_are_those_of_the_host() -> None:
    data = {"a": batches(), "b": batches(seed=1)}
    for options in ({"data": data}, {"data": batches(60), "accumulate": 3}):
        assert losses_of(DEVICE, **options) == pytest.approx(losses_of("cpu", **options), abs=1e-4)


@pytest.mark.needs_gpu
def test_a_compiled_model_trains_alike() -> None:
    if not (shutil.which("gcc") or shutil.which("cc")):
        pytest.skip("torch.compile needs a C compiler")
    pytest.importorskip("triton")
    found = losses_of(DEVICE, compile=True)
    assert found == pytest.approx(losses_of(DEVICE), abs=1e-4)


def test_a_model_compiled_without_code_generation_trains_alike() -> None:
    found = losses_of(DEVICE, compile={"backend": "aot_eager"})
    assert found == pytest.approx(losses_of(DEVICE), abs=1e-4)


def test_everything_is_on_the_device() -> None:
    where: dict[str, set[str]] = defaultdict(set)

    class Look:
        @hookimpl
        def on_batch_end(self, ctx: Any, batch: Any, model_outs: torch.Tensor) -> None:
            where["batch"] |= {t.device.type for t in batch}
            where["outs"].add(model_outs.device.type)
            where["loss"].add(ctx.loss.device.type)
            where["grad"] |= {
                p.grad.device.type for p in ctx.model.parameters() if p.grad is not None
            }

    run = trainer([Look()])
    run.fit(num_steps=2)
    assert where == {name: {DEVICE} for name in ("batch", "outs", "loss", "grad")}
    assert run.ctx.device.type == DEVICE
    assert {p.device.type for p in run.ctx.model.parameters()} == {DEVICE}
    state = run.ctx.optimizer.state.values()
    assert {entry["momentum_buffer"].device.type for entry in state} == {DEVICE}


def test_batches_of_every_kind_are_moved() -> None:
    class Own:
        def __init__(self, values: torch.Tensor) -> None:
            self.values = values

        def to(self, device: Any) -> Own:
            return Own(self.values.to(device))

    packed = rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    counted: Any = defaultdict(list, {"x": torch.ones(2)})
    batch = ({"a": [torch.ones(1)], "name": "text"}, packed, counted, Own(torch.ones(1)))
    first, sequence, more, own = to_device(batch, torch.device(DEVICE))
    found = (first["a"][0], sequence.data, more["x"], own.values)
    assert {one.device.type for one in found} == {DEVICE}
    assert first["name"] == "text"
    assert sequence.batch_sizes.device.type == "cpu"
    assert rnn.pad_packed_sequence(sequence)[0].shape == (3, 2, 2)
    assert more["absent"] == []


class Spoils:
    """Makes the loss of some steps infinite."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    @hookimpl(wrapper=True)
    def compute_loss(self, ctx: Any) -> Any:
        losses = yield
        return (
            {n: v * float("inf") for n, v in losses.items()}
            if ctx.global_step_id in self.steps
            else losses
        )


class Updates:
    """Counts the optimizer's real steps by its own hook."""

    def __init__(self, run: Trainer) -> None:
        self.count = 0
        run.ctx.optimizer.register_step_post_hook(self._one_more)

    def _one_more(self, *_: Any) -> None:
        self.count += 1


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_under_fp16_is_no_update(fused: bool) -> None:
    if fused and DEVICE == "cpu":
        pytest.skip("fused optimizers with a scaler are the GPU's")
    options: Any = {"optimizer": lambda p: torch.optim.AdamW(p, 1e-3, fused=True)} if fused else {}
    kept: list[list[torch.Tensor]] = []

    class Keep:
        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            kept.append([p.detach().clone() for p in ctx.model.parameters()])

    run = trainer([Spoils(6), Keep()], precision="fp16", nan="ignore", **options)
    run.ctx.scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**8)
    run.fit(num_steps=STEPS)
    assert run.ctx.updates == STEPS - 1
    assert all(map(torch.equal, kept[5], kept[6]))
    assert not all(map(torch.equal, kept[6], kept[7]))
    assert run.ctx.scaler.get_scale() == 2.0**7


def test_committed_updates_are_the_optimizers_own() -> None:
    run = trainer(precision="fp16", nan="ignore")
    updates = Updates(run)
    run.fit(num_steps=STEPS)
    assert run.ctx.updates == updates.count > 0


def test_a_bad_loss_ends_the_run_at_the_next_look_and_names_its_step() -> None:
    with pytest.raises(NonFiniteError, match=r"is (inf|nan) in step 5"):
        trainer([Spoils(5)]).fit(num_steps=STEPS)


def test_skip_step_leaves_the_weights_of_a_bad_step() -> None:
    run = trainer([Spoils(3)], nan="skip_step")
    run.fit(num_steps=STEPS)
    assert run.ctx.updates == STEPS - 1
    assert all(bool(p.isfinite().all()) for p in run.ctx.model.parameters())


@pytest.mark.needs_gpu
def test_the_process_uses_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    count = torch.cuda.device_count()
    monkeypatch.setenv("LOCAL_RANK", str(count))  # one more than there are: the first again
    assert trainer(device="cuda").ctx.device == torch.device("cuda", 0)
    assert torch.cuda.current_device() == 0


@pytest.mark.needs_gpu
def test_memory_does_not_grow_from_step_to_step() -> None:
    found: list[int] = []

    class Look:
        @hookimpl
        def on_step_end(self) -> None:
            found.append(torch.cuda.memory_allocated())

    trainer([Look()], data=batches(1) * 60, nan="ignore").fit(num_steps=60)
    assert max(found[30:]) <= max(found[10:30])


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(JobError, match="unknown device 'gpu'"):
        trainer(model=Net, device="gpu")
