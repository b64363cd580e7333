"""Quantisation of an exported graph by torchao, which is what torch recommends for new work."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from hatbus.errors import PluginError


def prepared(model: nn.Module, example_inputs: tuple[Any, ...]) -> nn.Module:
    """The model's graph with fake quantisation; ``train()`` and ``eval()`` work on it.

    Raises:
        PluginError: torchao is not installed.
    """
    torchao = _torchao()
    quantizer = torchao.X86InductorQuantizer()
    quantizer.set_global(torchao.get_default_x86_inductor_quantization_config(is_qat=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and torchao about one another
        graph = torch.export.export(model.train(), example_inputs).module()
        made = torchao.prepare_qat_pt2e(graph, quantizer)
        torchao.allow_exported_model_train_eval(made)
    found: nn.Module = made
    return found


def converted(model: nn.Module) -> nn.Module:
    """The quantised graph.

    Raises:
        PluginError: torchao is not installed.
    """
    torchao = _torchao()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchao.move_exported_model_to_eval(model)
        made = torchao.convert_pt2e(model)
        torchao.allow_exported_model_train_eval(made)
    found: nn.Module = made
    return found


class _Names:
    """What is used of torchao."""

    def __init__(self) -> None:
        from torchao.quantization.pt2e import (  # type: ignore[import-not-found]  # an extra
            allow_exported_model_train_eval,
            move_exported_model_to_eval,
        )
        from torchao.quantization.pt2e.quantize_pt2e import (  # type: ignore[import-not-found]
            convert_pt2e,
            prepare_qat_pt2e,
        )
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (  # type: ignore[import-not-found]
            X86InductorQuantizer,
            get_default_x86_inductor_quantization_config,
        )

        self.allow_exported_model_train_eval = allow_exported_model_train_eval
        self.move_exported_model_to_eval = move_exported_model_to_eval
        self.convert_pt2e, self.prepare_qat_pt2e = convert_pt2e, prepare_qat_pt2e
        self.X86InductorQuantizer = X86InductorQuantizer
        self.get_default_x86_inductor_quantization_config = (
            get_default_x86_inductor_quantization_config
        )


def _torchao() -> _Names:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _Names()
    except ImportError as error:
        raise PluginError(
            f"convert_mode 'pt2e' needs torchao, which cannot be imported ({error}); "
            "python -m pip install torchao, or take convert_mode 'eager'"
        ) from error
