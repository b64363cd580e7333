"""GradScale: the worked example, several batches a step, DDP, and what it must not cost."""

from __future__ import annotations

import math
import os
import random
import socket
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from hatbus import Trainer, hookimpl, plugin
from hatbus.errors import JobError, PluginError
from hatbus.loop import structure_changed
from hatbus_grad.grad_clip import GradClip
from hatbus_grad.grad_scale import GradScale

torch.set_num_threads(1)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(1, 1, bias=False)
        self.head_a = nn.Linear(1, 1, bias=False)
        self.head_b = nn.Linear(1, 1, bias=False)
        for module, value in ((self.backbone, 2.0), (self.head_a, 3.0), (self.head_b, 5.0)):
            nn.init.constant_(module.weight, value)

    def forward(self, x: torch.Tensor, task: str) -> torch.Tensor:
        return getattr(self, f"head_{task}")(self.backbone(x))


class Seen:
    """Keeps the gradients as the update sees them."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, float | None]] = []

    @hookimpl
    def on_optimizer_step_begin(self, model: nn.Module) -> None:
        self.gradients.append(
            {n: None if p.grad is None else p.grad.item() for n, p in model.named_parameters()}
        )


def mean_loss(outs: torch.Tensor, target: object) -> torch.Tensor:
    return outs.mean()


def batches(*values: float) -> list[tuple[torch.Tensor, int]]:
    return [(torch.tensor([[v]]), 0) for v in values]


def run(plugins: list[object], model: nn.Module | None = None, **kwargs: object) -> nn.Module:
    model = model or TwoHeads()
    data = {"a": batches(1.0), "b": batches(10.0)}
    loss = {"a": mean_loss, "b": mean_loss}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"data": data, "loss": loss, "plugins": plugins, **kwargs}
    Trainer(model, optimizer, **options).fit(num_epochs=1)
    return model


RULES = [("backbone", 0.1, "a"), ("head_b", 2)]


def test_worked_example_gradients() -> None:
    seen = Seen()
    run([GradScale(RULES), seen])
    assert seen.gradients[0]["backbone.weight"] == pytest.approx(50.3, abs=1e-5)
    assert seen.gradients[0]["head_a.weight"] == pytest.approx(2, abs=1e-6)
    assert seen.gradients[0]["head_b.weight"] == pytest.approx(40, abs=1e-6)


def test_worked_example_after_clip_and_update() -> None:
    model = run([GradScale(RULES, clip_grad_norm=1.0)]).double()
    found = [model.backbone.weight.item(), model.head_a.weight.item(), model.head_b.weight.item()]
    assert found == pytest.approx([1.92176916, 2.99688943, 4.93778859], abs=1e-6)


def test_grad_clip_sees_the_scaled_gradients_and_publishes_the_worked_norm() -> None:
    clip, logged = GradClip(max_norm=1.0, log_interval=1), {}

    class Log:
        @hookimpl
        def on_log(self, logs: dict[str, float]) -> None:
            logged.update({n: float(v) for n, v in logs.items()})

    run([GradScale(RULES), clip, Log()])
    assert logged["grad_norm"] == pytest.approx(64.29689026, abs=1e-5)


def test_rules_on_one_parameter_multiply() -> None:
    seen = Seen()
    run([GradScale([("backbone", 0.5), ("", 4.0), ("backbone", 3.0, "b")]), seen])
    plain = Seen()
    run([plain])
    assert plain.gradients[0]["backbone.weight"] == pytest.approx(53.0)
    assert seen.gradients[0]["backbone.weight"] == pytest.approx(3 * 2.0 + 50 * 6.0)
    assert seen.gradients[0]["head_a.weight"] == pytest.approx(8.0)


def test_zero_leaves_the_other_tasks_gradient() -> None:
    seen = Seen()
    run([GradScale([("backbone", 0, "b")]), seen])
    assert seen.gradients[0]["backbone.weight"] == pytest.approx(3.0)


def test_micro_batches_of_a_task_are_all_scaled() -> None:
    seen = Seen()
    data = {"a": batches(1.0, 2.0, 6.0), "b": batches(10.0, 20.0, 60.0)}
    run([GradScale(RULES), seen], data=data, accumulate=3)
    # means: a (1 + 2 + 6) / 3 = 3, b 30
    assert seen.gradients[0]["backbone.weight"] == pytest.approx(0.1 * 3 * 3 + 30 * 5, rel=1e-6)
    assert seen.gradients[0]["head_b.weight"] == pytest.approx(2 * 30 * 2, rel=1e-6)


def test_no_gradient_is_copied() -> None:
    held: list[tuple[int, int]] = []

    class Watch:
        @hookimpl
        def on_backward_end(self, model: nn.Module, task: str) -> None:
            grad = model.backbone.weight.grad
            held.append((grad.data_ptr(), id(grad)))

    run({"grad_scale": GradScale([("backbone", 0.5)]), "watch": Watch()})
    assert held[0] == held[1]  # the gradient of task a is the one that takes b's in


def test_scaling_equals_a_scaled_loss_for_a_random_network() -> None:
    def fit(plugins: list[object], weight: float) -> torch.Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        data = [(torch.randn(3, 4), torch.randn(3, 1)) for _ in range(6)]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        loss = lambda o, t: weight * nn.functional.mse_loss(o, t)  # noqa: E731
        Trainer(net, optimizer, data, loss, plugins, accumulate=2).fit(num_epochs=2)
        return torch.nn.utils.parameters_to_vector(net.parameters())

    scaled = fit([GradScale([("", 0.25)])], 1.0)
    assert torch.equal(scaled, fit([], 0.25))  # a power of two: the same bits


def test_unknown_module_is_refused_with_the_closest_name() -> None:
    with pytest.raises(JobError, match="unknown module 'backbon'; did you mean 'backbone'"):
        run([GradScale([("backbon", 0.1)])])


def test_a_part_of_a_name_is_no_match() -> None:
    model = TwoHeads()
    model.side_backbone = nn.Linear(1, 1)
    del model.backbone
    with pytest.raises(JobError, match="unknown module 'backbone'"):
        run([GradScale([("backbone", 0.1)])], model)


def test_unknown_task_is_refused() -> None:
    with pytest.raises(JobError, match="unknown task 'c'"):
        run([GradScale([("backbone", 0.1, "c")])])


@pytest.mark.parametrize(
    "entry", [("backbone",), ("backbone", "x"), (1, 2), "ab", ("a", math.nan), ("a", True)]
)
def test_a_rule_that_is_none_is_refused_by_its_place(entry: object) -> None:
    with pytest.raises(JobError, match=r"module_and_scale\[1\]"):
        GradScale([("backbone", 1.0), entry])


@pytest.mark.parametrize("norm", [0, -1.0, math.nan])
def test_a_limit_that_is_not_above_zero_is_refused(norm: float) -> None:
    with pytest.raises(JobError, match="clip_grad_norm"):
        GradScale([], clip_grad_norm=norm)


def test_two_that_clip_are_refused_at_start() -> None:
    with pytest.raises(PluginError, match=r"both write 'grad.clip'"):
        run([GradScale(RULES, clip_grad_norm=1.0), GradClip(1.0)])


def test_one_that_scales_and_one_that_clips_go_together() -> None:
    model = run([GradScale(RULES), GradClip(1.0)])
    assert model.backbone.weight.item() == pytest.approx(1.92176916, abs=1e-6)


def test_a_failing_backward_leaves_the_earlier_gradients_in_place() -> None:
    model = TwoHeads()
    target = torch.zeros(1)

    class Fail(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("broken backward")

    loss = {"a": mean_loss, "b": lambda o, t: Fail.apply(o).mean() + target.sum()}
    with pytest.raises(RuntimeError, match="broken backward"):
        run([GradScale(RULES)], model, loss=loss)
    assert model.backbone.weight.grad.item() == pytest.approx(0.3)


DDP_SCRIPT = textwrap.dedent("""
    import sys, torch
    from torch import nn
    from hatbus import Trainer
    from hatbus_grad.grad_clip import GradClip
    from hatbus_grad.grad_scale import GradScale

    torch.set_num_threads(1)

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Linear(4, 4)
            self.head_a, self.head_b = nn.Linear(4, 1), nn.Linear(4, 1)

        def forward(self, x, task):
            return getattr(self, "head_" + task)(self.backbone(x).tanh())

    import os
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(0)
    model = TwoHeads().double()
    def data(offset):
        seeded = torch.Generator().manual_seed(offset)
        whole = torch.randn(12, 4, 4, dtype=torch.float64, generator=seeded)
        return [(part.tensor_split(world)[rank], 0) for part in whole]
    loss = lambda o, t: (o ** 2).mean()
    rules = [("backbone", 0.3, "a"), ("backbone", 1.7), ("head_b", 0, "b"), ("head_a", 3)]
    trainer = Trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.1), {"a": data(1), "b": data(2)},
        {"a": loss, "b": loss}, accumulate=2,
        plugins=[GradScale(rules), GradClip(0.7)],
    )
    trainer.fit(num_epochs=2)
    weights = nn.utils.parameters_to_vector(model.parameters())
    torch.save(weights, sys.argv[1] + f"-{rank}-of-{world}.pt")
""")


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def test_ranks_end_bit_identical_and_equal_to_one_process(tmp_path: object) -> None:
    script = tmp_path / "train.py"
    script.write_text(DDP_SCRIPT)
    paths = os.pathsep.join(p for p in sys.path if p)
    base = {
        **os.environ,
        "PYTHONPATH": paths,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }

    def start(**extra: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "w")], env={**base, **extra}
        )

    both = [start(RANK=str(r), WORLD_SIZE="2") for r in range(2)]
    assert [p.wait(90) for p in (*both, start())] == [0, 0, 0]
    names = ("w-0-of-2.pt", "w-1-of-2.pt", "w-0-of-1.pt")
    first, second, alone = (torch.load(tmp_path / n) for n in names)
    assert torch.equal(first, second)
    assert torch.allclose(first, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_random_rules_equal_gradients_taken_apart(seed: int) -> None:
    chosen = random.Random(seed)
    names = ["", "backbone", "backbone.0", "backbone.1", "head_a", "head_b"]
    rules = [
        (chosen.choice(names), chosen.choice([-1, 0, 0.5, 3]), chosen.choice([None, "a", "b"]))
        for _ in range(chosen.randrange(5))
    ]
    torch.manual_seed(seed)
    model = TwoHeads().double()
    model.backbone = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1)).double()
    accumulate, data = chosen.choice([1, 2, 3]), {}
    for task in "ab":
        data[task] = [(torch.randn(2, 1, dtype=torch.float64), 0) for _ in range(accumulate)]
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for task, found in data.items():
        for inputs, _ in found:
            used = {
                name: parameter
                for name, parameter in model.named_parameters()
                if name.startswith(("backbone", f"head_{task}"))
            }
            loss = model(inputs, task).mean() / accumulate
            gradients = torch.autograd.grad(loss, list(used.values()))
            for name, gradient in zip(used, gradients, strict=True):
                scales = [
                    scale
                    for module, scale, wanted in rules
                    if wanted in (None, task)
                    and (not module or f"{name}.".startswith(f"{module}."))
                ]
                expected[name] += gradient * math.prod(scales)

    class Compare:
        @hookimpl
        def on_optimizer_step_begin(self, model: nn.Module) -> None:
            for name, p in model.named_parameters():
                assert torch.allclose(p.grad, expected[name], rtol=1e-12, atol=1e-12), (name, rules)

    run([GradScale(rules), Compare()], model, data=data, accumulate=accumulate)


@plugin(stage="setup")
class Changes:
    """Replaces the backbone at step 1, and takes head_b away at step 2."""

    @hookimpl
    def on_step_begin(self, ctx: object) -> None:
        if ctx.global_step_id == 1:
            ctx.model.backbone = nn.Linear(1, 1, bias=False)
            nn.init.constant_(ctx.model.backbone.weight, 2.0)
            ctx.optimizer.add_param_group({"params": list(ctx.model.backbone.parameters())})
        if ctx.global_step_id == 2:
            del ctx.model.head_b
            structure_changed(ctx)


def test_rules_hold_for_what_is_put_in_and_end_with_what_is_taken_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, seen = TwoHeads(), Seen()
    rules = [("backbone", 0.5), ("head_b", 3.0), ("head_a", 2.0)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    data = {"a": batches(1.0, 1.0, 1.0)}
    Trainer(model, optimizer, data, mean_loss, [Changes(), GradScale(rules), seen]).fit(
        num_epochs=1
    )
    assert [found["backbone.weight"] for found in seen.gradients] == [1.5] * 3  # 0.5 * head_a
    assert [found["head_a.weight"] for found in seen.gradients] == [4.0] * 3  # 2 * backbone
    assert caplog.messages == [
        "grad_scale: the model has no 'head_b' any more; its rule is left out"
    ]
