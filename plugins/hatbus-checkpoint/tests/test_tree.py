"""State trees come back bit for bit, and what cannot is refused with its path."""

from __future__ import annotations

import json
import math
import random
from collections import OrderedDict, deque
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hatbus.errors import CheckpointError, SaveError
from hatbus_checkpoint import optimizer_state, tensor_file
from hatbus_checkpoint.tensor_file import DTYPES, NAMES, chunks_of
from hatbus_checkpoint.tree import decode, encode


def round_trip(tree: Any, inline: int = 8192) -> Any:
    data, tensors = encode(tree, inline=inline)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tensors"
        path.write_bytes(b"".join(chunks_of(tensors)))
        return decode(json.loads(json.dumps(data)), tensor_file.read(path))


def bits(value: Any) -> Any:
    """The value with every float, tensor and array as its bytes."""
    if isinstance(value, torch.Tensor):
        plain = value.resolve_conj().resolve_neg().contiguous()
        raw = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).tolist()
        return ("tensor", value.dtype, value.shape, raw)
    if isinstance(value, (np.ndarray, np.generic)):
        return (type(value), value.dtype, value.shape, value.tobytes())
    if isinstance(value, float):
        return ("nan",) if math.isnan(value) else (value, math.copysign(1, value))
    if isinstance(value, dict):
        return (type(value), [(bits(k), bits(v)) for k, v in value.items()])
    if isinstance(value, (list, tuple)):
        return (type(value), [bits(v) for v in value])
    return (type(value), value)


def same(a: Any, b: Any) -> bool:
    return bool(bits(a) == bits(b))


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
keys = st.text() | st.integers() | st.booleans() | st.tuples(st.integers(), st.text())
trees = st.recursive(
    plain,
    lambda more: (
        st.lists(more, max_size=4)
        | st.dictionaries(keys, more, max_size=4)
        | st.lists(more, max_size=4).map(tuple)
    ),
    max_leaves=12,
)


@given(trees)
@settings(max_examples=150, deadline=None)
def test_any_plain_tree_comes_back_equal_in_value_and_type(tree: Any) -> None:
    assert same(round_trip(tree), tree)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("inline", [0, 8192])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (4, 5)])
def test_a_tensor_of_any_kind_comes_back_bit_for_bit(
    dtype: torch.dtype, inline: int, shape: tuple[int, ...]
) -> None:
    if not shape and NAMES[dtype] == "F4":
        pytest.skip("half a byte is refused")
    size = torch.empty(shape, dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (*shape, size), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(shape)
    assert same(round_trip({"x": tensor}, inline)["x"], tensor)


def test_special_values_keep_their_kind() -> None:
    tree = {
        "nan": float("nan"),
        "-inf": float("-inf"),
        "-0": -0.0,
        "$odd": {"$tensor": "not a tag"},
        "ordered": OrderedDict([(2, "b"), (1, "a")]),
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "path": Path("a/b"),
        "array": np.arange(6, dtype=np.uint32).reshape(2, 3),
        "scalar": np.float64(0.1),
        "flag": np.bool_(True),
        "set": {3, 1, 2},
        "deque": deque([1.0, (2, "b")], maxlen=3),
    }
    assert same(round_trip(tree), tree)


def test_the_random_states_come_back_exactly() -> None:
    from hatbus import rng

    state = round_trip(rng.capture())
    drawn = [random.random(), np.random.rand(), torch.rand(())]
    rng.restore(state)
    assert [random.random(), np.random.rand(), torch.rand(())] == drawn


@pytest.mark.parametrize("inline", [0, 8192])
def test_a_dense_tensor_keeps_its_memory_layout(inline: int) -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    back = round_trip([image], inline)[0]
    assert back.stride() == image.stride()
    assert back.equal(image)


@pytest.mark.parametrize("inline", [0, 8192])
@pytest.mark.parametrize("shape", [(64, 1), (1, 64), (3, 1, 5), (1, 2, 0, 3)])
def test_strides_that_a_size_of_one_leaves_open_come_back(
    shape: tuple[int, ...], inline: int
) -> None:
    turned = torch.randn(shape).transpose(0, 1)
    assert round_trip([turned], inline)[0].stride() == turned.stride()


CONJUGATE = torch.tensor([[1 + 2j, -0.0 + 4j]], dtype=torch.complex64).conj()


@pytest.mark.parametrize("inline", [0, 8192])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(1, 5)[:, 0],
        torch.randn(1, 5, 7)[:, :1, 3],
        torch.randn(4, 5)[::2, 1:],
        torch.randn(3).expand(4, 3),
        CONJUGATE,
        CONJUGATE.imag,
        CONJUGATE.to(torch.complex128).conj()[:, 1:],
    ],
    ids=["stride", "strides", "part", "expanded", "conjugate", "negative", "complex128"],
)
def test_a_view_of_any_kind_comes_back_in_value(tensor: torch.Tensor, inline: int) -> None:
    assert same(round_trip([tensor], inline)[0], tensor)


def test_a_tensor_and_its_conjugate_stay_two() -> None:
    both = round_trip([CONJUGATE, CONJUGATE.conj()], 0)
    assert same(both, [CONJUGATE, CONJUGATE.conj()])


def test_a_tensor_met_twice_is_stored_once_and_comes_back_as_one() -> None:
    shared = torch.randn(5000)
    data, tensors = encode({"a": shared, "b": [shared]})
    assert len(tensors) == 1
    back = decode(data, tensors)
    assert back["a"] is back["b"][0]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (lambda: 1, "is a builtins.function"),
        (object(), "is a builtins.object"),
        (torch.nn.Linear(1, 1), "is a torch.nn.modules.linear.Linear"),
        (torch.eye(3).to_sparse(), "is torch.sparse_coo"),
        (torch.empty(2, device="meta"), "is meta"),
        (np.array([object()]), "is a numpy object"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_path(value: Any, what: str) -> None:
    with pytest.raises(SaveError, match=f"outer/1/inner.*{what}|{what}"):
        encode({"outer": [0, {"inner": value}]})


def test_a_tree_that_contains_itself_is_refused() -> None:
    tree: list[Any] = []
    tree.append(tree)
    with pytest.raises(SaveError, match="contains itself"):
        encode(tree)


@pytest.mark.parametrize(
    "data",
    [
        {"$tensor": "gone"},
        {"$tensor": {"dtype": "F99", "shape": [], "data": ""}},
        {"$tensor": {"dtype": "F32", "shape": [7], "data": "AAAA"}},
        {"$tensor": {"dtype": "F32", "shape": [2], "data": "AAAAAAAAAAA=", "stride": [-1]}},
        {"$run": "os.system"},
        {"$dict": [[[], 1]]},
        {"$float": "xyz"},
        {"$dtype": "evil"},
    ],
)
def test_data_that_encode_never_made_is_a_clean_error(data: Any) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        decode(data, {})


def test_a_tensor_named_like_the_formats_metadata_is_refused() -> None:
    with pytest.raises(SaveError, match="'__metadata__'"):
        list(chunks_of({"__metadata__": torch.ones(1)}))


def _optimizers() -> list[Any]:
    names = [
        "Adadelta",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "ASGD",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
        "Adafactor",
    ]
    found = [(name, {}) for name in names if hasattr(torch.optim, name)]
    return [*found, ("SGD", {"momentum": 0.9}), ("Adam", {"amsgrad": True}), ("LBFGS", {})]


@pytest.mark.parametrize(("name", "options"), _optimizers())
def test_every_torch_optimizer_goes_on_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        return model, getattr(torch.optim, name)(model.parameters(), lr=0.1, **options)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, k: int) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(torch.full((2, 4), float(k + 1))).pow(2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    model, optimizer = build()
    for k in range(3):
        step(model, optimizer, k)
    saved = round_trip(optimizer_state.take(model, optimizer), 16)
    other, fresh = build()
    other.load_state_dict(model.state_dict())
    assert optimizer_state.give(other, fresh, saved, strict=True) == []
    for k in range(3, 6):
        step(model, optimizer, k)
        step(other, fresh, k)
    assert other.weight.equal(model.weight)


def test_fp32_state_of_a_bf16_parameter_stays_fp32() -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.Linear(2, 2).bfloat16()
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    model, optimizer = build()
    master = torch.randn(2, 2)
    optimizer.state[model.weight]["master"] = master
    saved = round_trip(optimizer_state.take(model, optimizer))
    other, fresh = build()
    optimizer_state.give(other, fresh, saved, strict=True)
    assert fresh.state[other.weight]["master"].equal(master)
