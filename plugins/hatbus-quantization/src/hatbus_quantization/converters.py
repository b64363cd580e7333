"""From one kind of model to the next: float, calibration, QAT, quantised. Source: ``hat``.

A converter is called with a model, changes it, and returns it or another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn

from hatbus.errors import JobError, PluginError
from hatbus.log import log
from hatbus.loop import find_module
from hatbus.option_values import one_of
from hatbus_quantization import eager, pt2e
from hatbus_quantization.fusing import fusable

MODES: Final = ("eager", "pt2e")
QAT_MODES: Final = ("fuse_bn", "with_bn")


class Float2QAT:
    """A float model into one that imitates quantisation while it trains.

    Batch norms, and the activations after them, are fused first: by the model's own ``fuse_model``,
    else wherever they follow one another in a ``Sequential``. A QAT model is left as it is, and a
    calibrated one goes on with its ranges.

    Args:
        convert_mode: ``"eager"``: torch's eager mode, which keeps the names of modules; the model
            has a ``QuantStub`` and a ``DeQuantStub``. ``"pt2e"``: an exported graph, by torchao.
        qat_mode: ``"fuse_bn"``: batch norms are folded into the weights and gone; ``"with_bn"``:
            they stay inside the fused modules, and train. None: the pipeline's, else ``"fuse_bn"``.
        backend: a quantised engine of torch's; ``"x86"`` has a scale per channel for weights.
        example_inputs: for ``"pt2e"``: a tuple of what the model's forward takes.

    Raises:
        JobError: a value that is not accepted.
    """

    def __init__(
        self,
        convert_mode: str = "eager",
        qat_mode: str | None = None,
        backend: str = "x86",
        example_inputs: tuple[Any, ...] | None = None,
    ) -> None:
        where = type(self).__name__
        one_of(f"{where}: convert_mode", convert_mode, MODES)
        if qat_mode is not None:
            one_of(f"{where}: qat_mode", qat_mode, QAT_MODES)
        eager.check_backend(where, backend)
        if convert_mode == "pt2e" and example_inputs is None:
            raise JobError(f"{where}: convert_mode 'pt2e' needs example_inputs, a tuple")
        self.convert_mode, self.qat_mode, self.backend = convert_mode, qat_mode, backend
        self.example_inputs = example_inputs

    def __call__(self, model: nn.Module) -> nn.Module:
        """The QAT model, in training mode.

        Raises:
            PluginError: the model has no stubs, or is quantised already.
        """
        found = eager.fake_quants(model)
        if found:
            if not any(bool(one.fake_quant_enabled) for one in found):  # it was calibrated
                switch(model, observes=True, quantises=True)
            return model
        if self.convert_mode == "pt2e":
            return pt2e.prepared(model, self.example_inputs or ())
        if eager.is_quantised(model):
            raise PluginError(f"{type(self).__name__}: the model is quantised; give a float one")
        self._check_stubs(model)
        return eager.prepared(self._fused(model), self.backend)

    def _fused(self, model: nn.Module) -> nn.Module:
        own = getattr(model, "fuse_model", None)
        if callable(own):
            own()
            return model
        return eager.fused(model, fusable(model), folds=self.qat_mode != "with_bn")

    def _check_stubs(self, model: nn.Module) -> None:
        from torch.ao.quantization import DeQuantStub, QuantStub, QuantWrapper

        kinds = {type(one) for one in model.modules()}
        missing = [one.__name__ for one in (QuantStub, DeQuantStub) if one not in kinds]
        if missing and QuantWrapper not in kinds:
            raise PluginError(
                f"{type(self).__name__}: {type(model).__name__} has no {' and no '.join(missing)}; "
                "put them at its inputs and outputs (torch.ao.quantization), or wrap it: "
                "torch.ao.quantization.QuantWrapper(model)"
            )


class Float2Calibration(Float2QAT):
    """A float model into one that watches the ranges of its values, and calculates in floats.

    It has the names of the QAT model, which takes over the ranges (``LoadCheckpoint``). It is in
    eval mode: batch norms do not move. The options are those of ``Float2QAT``.
    """

    def __call__(self, model: nn.Module) -> nn.Module:
        """The calibration model, in eval mode."""
        made = super().__call__(model).eval()
        switch(made, observes=True, quantises=False)
        return made


class Calibration2QAT:
    """A calibration model into a QAT model, with the ranges that it has seen."""

    def __call__(self, model: nn.Module) -> nn.Module:
        """The QAT model, in training mode."""
        switch(model, observes=True, quantises=True)
        return model.train()


class QAT2Quantize:
    """A QAT model into the quantised one: ``torch.ao.quantization.convert``, on the CPU.

    Args:
        convert_mode: as that of the converter before it.
        backend: the engine that its weights are packed for.

    Raises:
        JobError: a value that is not accepted.
    """

    def __init__(self, convert_mode: str = "eager", backend: str = "x86") -> None:
        one_of("QAT2Quantize: convert_mode", convert_mode, MODES)
        eager.check_backend("QAT2Quantize", backend)
        self.convert_mode, self.backend = convert_mode, backend

    def __call__(self, model: nn.Module) -> nn.Module:
        """The quantised model, in eval mode.

        Raises:
            PluginError: the model is no QAT model.
        """
        if self.convert_mode == "pt2e":
            return pt2e.converted(model)
        found = eager.fake_quants(model)
        if not found:
            raise PluginError(
                f"QAT2Quantize: {type(model).__name__} is no QAT model; put Float2QAT before it"
            )
        unseen = [one for one in found if not has_seen(one)]
        if unseen:
            log.warning(
                "QAT2Quantize: %d of %d observers have seen no value; train or calibrate first",
                len(unseen),
                len(found),
            )
        return eager.converted(model, self.backend)


class FuseBN:
    """Folds batch norms into the convolution or linear before them, in a float model.

    Args:
        modules: names of modules to look into; None: the whole model.
    """

    def __init__(self, modules: Sequence[str] | None = None) -> None:
        self.modules = None if modules is None else list(modules)

    def __call__(self, model: nn.Module) -> nn.Module:
        """The model, its mode as before.

        Raises:
            JobError: there is no such module.
        """
        for name in [""] if self.modules is None else self.modules:
            module = find_module(model, name, "FuseBN: modules")
            eager.fused(module, fusable(module, norms_only=True), folds=True)
        return model


class Float2Traced:
    """A model as its graph: ``torch.jit.trace`` with inputs, ``torch.fx`` without.

    Args:
        example_inputs: a tuple of what the model's forward takes; None: a graph module of
            ``torch.fx``, which has the names of the model and can go on training.
    """

    def __init__(self, example_inputs: tuple[Any, ...] | None = None) -> None:
        self.example_inputs = example_inputs

    def __call__(self, model: nn.Module) -> nn.Module:
        """The graph; in eval mode when it was traced with inputs."""
        if self.example_inputs is None:
            return torch.fx.symbolic_trace(model)
        import warnings

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.export is another format
            traced: Any = torch.jit.trace(model.eval(), self.example_inputs, strict=False)  # type: ignore[no-untyped-call]  # torch's
        made: nn.Module = traced
        return made


def switch(model: nn.Module, *, observes: bool, quantises: bool) -> None:
    """Turns every observer and every imitation of a model on or off."""
    for one in eager.fake_quants(model):
        one.enable_observer(observes)  # type: ignore[operator]  # a FakeQuantizeBase has it
        one.enable_fake_quant(quantises)  # type: ignore[operator]


def has_seen(fake_quant: Any) -> bool:
    """Whether its observer has seen a value."""
    observer = getattr(fake_quant, "activation_post_process", None)
    low = getattr(observer, "min_val", None)
    return low is None or (low.numel() > 0 and bool(torch.isfinite(low).all()))


CONVERTERS: Final = {
    one.__name__: one
    for one in (
        Calibration2QAT,
        Float2Calibration,
        Float2QAT,
        Float2Traced,
        FuseBN,
        QAT2Quantize,
    )
}
"""Converters by the names that a config may give."""
