"""GradMonitor against norms computed one by one."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from hatbus import hookimpl, plugin
from hatbus.errors import JobError, PluginError
from hatbus_monitor.grad_monitor import GradMonitor, each_norm


@plugin(stage="setup")
class Expected:
    """Norms of the same gradients, the slow way, before the step clips them."""

    def __init__(self, norm_type: float = 2.0) -> None:
        self.norms: list[dict[str, float]] = []
        self.norm_type = norm_type

    @hookimpl
    def on_batch_end(self, model: Any) -> None:
        def norm(tensors: list[torch.Tensor]) -> float:
            flat = torch.cat([t.detach().flatten() for t in tensors])
            return float(torch.linalg.vector_norm(flat, self.norm_type))

        named = {"": model, "0": model[0], "2": model[2]}
        found = {n: norm([p.grad for p in m.parameters()]) for n, m in named.items()}
        weights = {f"w{n}": norm(list(m.parameters())) for n, m in named.items()}
        self.norms.append(found | weights)


@plugin(stage="train")
class Clips:
    """Clips to nearly nothing."""

    @hookimpl
    def clip_gradients(self, model: Any) -> bool:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-6)
        return True


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_norms_per_module_are_those_before_clipping(trainer, events, norm_type: float) -> None:
    expected = Expected(norm_type)
    monitor = GradMonitor(log_freq=3, norm_type=norm_type, weights=True)
    trainer([expected, Clips(), monitor, events]).fit(num_epochs=1)
    for name, key in [("grad_norm", ""), ("grad_norm/0", "0"), ("weight_norm/2", "w2")]:
        found = events.of(name)
        assert [step for step, _ in found] == [2, 5]
        assert [v for _, v in found] == pytest.approx([expected.norms[n][key] for n in (2, 5)])


def test_learning_rate_of_each_group_is_published(trainer, events) -> None:
    run = trainer([GradMonitor(log_freq=6), events])
    run.ctx.optimizer.param_groups[0]["name"] = "all"
    run.ctx.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.5})
    run.fit(num_epochs=1)
    assert (events.of("lr/all"), events.of("lr/1")) == ([(5, 0.1)], [(5, 0.5)])


def test_chosen_modules_only(trainer, events) -> None:
    trainer([GradMonitor(log_freq=6, modules=["2"], lr=False), events]).fit(num_epochs=1)
    assert [set(logs) for _, logs in events.logs] == [{"grad_norm", "grad_norm/2"}, {"train/loss"}]


def test_an_unknown_module_is_refused_at_loop_begin(trainer) -> None:
    model = torch.nn.Sequential()
    model.add_module("head", torch.nn.Linear(5, 3))
    run = trainer([GradMonitor(modules=["haed"])], model=model)
    with pytest.raises(PluginError, match="no module 'haed'; did you mean 'head'"):
        run.fit(num_epochs=1)


def test_steps_in_between_compute_nothing(trainer, events, monkeypatch) -> None:
    calls = []
    foreach = torch._foreach_norm
    monkeypatch.setattr(torch, "_foreach_norm", lambda *a: calls.append(1) or foreach(*a))
    trainer([GradMonitor(log_freq=4), events]).fit(num_steps=11)
    assert len(calls) == 2


def words() -> torch.nn.Module:
    """A model whose first weight has sparse gradients, of rows that stand in them twice, too."""
    embedding = torch.nn.Embedding(10, 4, sparse=True)
    return torch.nn.Sequential(embedding, torch.nn.Flatten(), torch.nn.Linear(12, 3))


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_a_sparse_gradient_has_the_norm_of_a_dense_one(trainer, events, norm_type: float) -> None:
    dense = type(events)()
    inputs = torch.tensor([[1, 2, 2], [7, 1, 0]])
    for is_sparse, seen in ((True, events), (False, dense)):
        torch.manual_seed(0)
        model = words()
        model[0].sparse = is_sparse
        monitor = GradMonitor(log_freq=1, norm_type=norm_type)
        data = [(inputs, torch.tensor([0, 2]))] * 2
        trainer([monitor, seen], data, model=model, accumulate=2).fit(num_epochs=1)
    ((_, norm),) = events.of("grad_norm/0")
    assert norm == pytest.approx(dense.of("grad_norm/0")[0][1])


def test_a_sparse_gradient_of_nothing_has_no_norm() -> None:
    gradient = torch.zeros(10, 4).to_sparse(1)
    assert each_norm([gradient], float("inf")) == [0.0]


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_floats_of_one_byte_have_the_norm_of_their_values(
    kind: torch.dtype, norm_type: float
) -> None:
    weights = torch.tensor([3.0, -4.0])
    expected = torch.linalg.vector_norm(weights, norm_type)
    assert each_norm([weights.to(kind)], norm_type) == [expected]
    packed = torch.ones(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    assert each_norm([packed], norm_type) == [0.0]


@pytest.mark.parametrize("options", [{"log_freq": 0}, {"norm_type": 0}])
def test_wrong_values_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="accepted: "):
        GradMonitor(**options)


def test_losses_are_bit_identical_with_and_without(trainer, events, caplog) -> None:
    caplog.set_level(logging.INFO)
    plain = type(events)()
    trainer([GradMonitor(log_freq=1, weights=True), events]).fit(num_epochs=2)
    trainer([plain]).fit(num_epochs=2)
    assert events.losses == plain.losses


def test_the_largest_gradient_is_found_beside_one_without_elements() -> None:
    found = each_norm([torch.zeros(0, 3), None, torch.tensor([-4.0, 2.0])], float("inf"))
    assert [float(one) for one in found] == [0, 4]
