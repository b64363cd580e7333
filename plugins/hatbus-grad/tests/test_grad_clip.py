"""GradClip: equal to torch's own clipping, once per step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.errors import JobError, PluginError
from hatbus_grad.clipping import clip_norm
from hatbus_grad.grad_clip import GradClip

torch.set_num_threads(1)


def fit(plugins: list[object], clip: object = None, **options: object) -> list[torch.Tensor]:
    """Weights after three steps; with ``clip``, of a plain loop that calls it on the parameters."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    data = [(torch.randn(3, 4), 9 * torch.randn(3, 1)) for _ in range(3)]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    loss = nn.functional.mse_loss
    if clip is None:
        Trainer(net, optimizer, data, loss, plugins, **options).fit(num_epochs=1)
    else:
        for inputs, target in data:
            optimizer.zero_grad()
            loss(net(inputs), target).backward()
            clip(net.parameters())
            optimizer.step()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("norm_type", [1, 2, "inf"])
def test_by_norm_equals_torch(norm_type: float) -> None:
    def plain(parameters: object) -> None:
        nn.utils.clip_grad_norm_(parameters, 0.5, float(norm_type))

    expected = fit([], plain)
    assert all(map(torch.equal, fit([GradClip(0.5, norm_type)]), expected))
    assert not torch.equal(fit([])[0], expected[0])


def test_by_value_equals_torch() -> None:
    expected = fit([], lambda parameters: nn.utils.clip_grad_value_(parameters, 0.1))
    assert all(map(torch.equal, fit([GradClip(max_value=0.1)]), expected))


@pytest.mark.parametrize(
    "options", [{"max_norm": 0.1}, {"max_norm": 0.1, "norm_type": "inf"}, {"max_value": 0.01}]
)
def test_sparse_gradients_are_clipped_as_dense_ones(options: dict[str, object]) -> None:
    def embedding(*, sparse: bool) -> torch.Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(9, 4, sparse=sparse), nn.Flatten(), nn.Linear(12, 3))
        data = [(torch.tensor([[1, 2, 2], [7, 1, 0]]), torch.tensor([0, 2]))] * 4
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        loss, clip = nn.functional.cross_entropy, GradClip(**options)
        Trainer(net, optimizer, data, loss, [clip], accumulate=2).fit(num_epochs=1)
        return net[0].weight.detach()

    torch.testing.assert_close(embedding(sparse=True), embedding(sparse=False))


def test_a_sparse_gradient_of_nothing_is_no_fault() -> None:
    weight = nn.Parameter(torch.ones(9, 4))
    weight.grad = torch.zeros(9, 4).to_sparse(1)
    assert clip_norm(torch.optim.SGD([weight]), 0.1, float("inf")) == 0


def test_the_norm_is_published_every_n_steps_and_as_it_was_before_clipping() -> None:
    norms: list[float] = []

    class Log:
        @hookimpl
        def on_log(self, logs: dict[str, torch.Tensor]) -> None:
            if "grad_norm" in logs:
                norms.append(logs["grad_norm"].item())

    fit([GradClip(0.5, log_interval=2), Log()])
    assert len(norms) == 1
    assert norms[0] > 0.5


def test_two_are_refused() -> None:
    with pytest.raises(PluginError, match=r"'first' and 'second' both write 'grad.clip'"):
        fit({"first": GradClip(1.0), "second": GradClip(max_value=1.0)})


@pytest.mark.parametrize("options", [{}, {"max_norm": 1, "max_value": 1}])
def test_one_limit_has_to_be_chosen(options: dict[str, float]) -> None:
    with pytest.raises(JobError, match="one of the two"):
        GradClip(**options)


@pytest.mark.parametrize("norm_type", [0, -2, "x"])
def test_a_norm_that_is_none_is_refused(norm_type: object) -> None:
    with pytest.raises(JobError, match="norm_type"):
        GradClip(1.0, norm_type)


def test_the_largest_gradient_is_found_beside_one_without_elements() -> None:
    empty, weight = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.zeros(2))
    empty.grad, weight.grad = torch.zeros(0, 3), torch.tensor([-4.0, 2.0])
    assert clip_norm(torch.optim.SGD([empty, weight]), 1.0, float("inf")) == 4
    assert weight.grad.tolist() == pytest.approx([-1.0, 0.5], rel=1e-5)


def with_gradients(scale: float, dtype: torch.dtype) -> list[nn.Parameter]:
    chance = torch.Generator().manual_seed(2)
    found = [nn.Parameter(torch.zeros(size, dtype=dtype)) for size in (5, 1, 70)]
    for one in found:
        one.grad = (scale * torch.randn(len(one), generator=chance)).to(dtype)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "times", [0.0, 0.5, 1 - 1e-5, 1 - 1e-7, 1, 1 + 1e-7, 1 + 1e-5, 2, float("nan"), float("inf")]
)
def test_every_gradient_has_torchs_own_bits_on_both_sides_of_the_limit(
    times: float, dtype: torch.dtype
) -> None:
    mine, torchs = with_gradients(3.0, dtype), with_gradients(3.0, dtype)
    norm = float(nn.utils.get_total_norm([one.grad for one in mine if one.grad is not None]))
    for one in (*mine, *torchs):
        one.grad.mul_(times)  # type: ignore[union-attr]
    expected = nn.utils.clip_grad_norm_(torchs, norm)
    found = clip_norm(torch.optim.SGD(mine, lr=1.0), norm)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    for one, other in zip(mine, torchs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0, equal_nan=True)
