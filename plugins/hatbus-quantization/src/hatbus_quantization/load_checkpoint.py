"""``LoadCheckpoint``: an earlier stage's weights, as a step of a pipeline. Source: ``hat``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hatbus.errors import CheckpointError, PluginError
from hatbus.log import log
from hatbus.option_values import path
from hatbus_quantization.eager import OWN_SWITCHES

_SHOWN = 5
"""Names of one kind that a message lists."""


class LoadCheckpoint:
    """Loads weights into a model by name.

    Args:
        checkpoint_path: a checkpoint, ``<folder>/best``, a ``.safetensors`` file, HAT's
            ``.pth.tar``; see ``hatbus_checkpoint.weights_of``. A name such as
            ``float-checkpoint-best.pth.tar`` that is no file is the checkpoint which hatbus has
            marked so, in that folder and under that prefix.
        state_dict_update_func: changes the names or values before they are loaded.
        check_hash: hatbus always checks what it reads of its own; accepted, and without effect.
        allow_miss: whether the model may have weights that the checkpoint has not.
        ignore_extra: whether the checkpoint may have weights that the model has not.
        ignore_tensor_shape: leave out weights of another shape; else they are an error.
        verbose: name in the log what was missing and left over.
        load_ema_model: take the averages of the plugin ``ema`` in place of the raw weights.

    What a QAT or calibration stage is doing (observing, quantising) is not loaded with its ranges.

    Raises:
        JobError: a value that is not accepted.
    """

    def __init__(
        self,
        checkpoint_path: str | Path,
        state_dict_update_func: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        check_hash: bool = True,
        allow_miss: bool = False,
        ignore_extra: bool = False,
        ignore_tensor_shape: bool = False,
        verbose: bool = False,
        load_ema_model: bool = False,
    ) -> None:
        path("LoadCheckpoint: checkpoint_path", checkpoint_path)
        self.checkpoint_path = Path(checkpoint_path)
        self.state_dict_update_func = state_dict_update_func
        self.check_hash, self.verbose = check_hash, verbose
        self.allow_miss, self.ignore_extra = allow_miss, ignore_extra
        self.ignore_tensor_shape, self.load_ema_model = ignore_tensor_shape, load_ema_model

    def __call__(self, model: nn.Module) -> nn.Module:
        """The model with the weights.

        Raises:
            CheckpointError: there is no such checkpoint, or it does not fit.
            PluginError: hatbus-checkpoint, which reads them, is not installed.
        """
        view = "ema" if self.load_ema_model else "raw"
        state = dict(_weights_of(self.checkpoint_path, view))
        if self.state_dict_update_func is not None:
            state = self.state_dict_update_func(state)
        state = {n: v for n, v in state.items() if n.rpartition(".")[2] not in OWN_SWITCHES}
        own = [n for n in model.state_dict() if n.rpartition(".")[2] not in OWN_SWITCHES]
        missing, extra = [n for n in own if n not in state], [n for n in state if n not in own]
        self._refuse(missing, "missing in the checkpoint", "allow_miss", self.allow_miss)
        self._refuse(extra, "not in the model", "ignore_extra", self.ignore_extra)
        if state and len(extra) == len(state):
            raise CheckpointError(f"{self._start}: none of its weights is in the model")
        self._load(model, {n: v for n, v in state.items() if n not in extra})
        log.info("weights from %r (%d tensors)", str(self.checkpoint_path), len(state) - len(extra))
        if self.verbose and (missing or extra):
            log.info("LoadCheckpoint: missing %s; left over %s", _few(missing), _few(extra))
        return model

    def _load(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        try:
            model.load_state_dict(state, strict=False)
        except RuntimeError as error:  # torch has loaded all that fits, and lists the rest
            mine = model.state_dict()
            unlike = [n for n, v in state.items() if _shape(mine[n]) != _shape(v)]
            if not unlike or not self.ignore_tensor_shape:
                named = _few(
                    [f"{n} {_shape(state[n])}, {_shape(mine[n])} in the model" for n in unlike]
                )
                raise CheckpointError(
                    f"{self._start}: {len(unlike)} of another shape ({named or error}); "
                    "ignore_tensor_shape=True leaves them out"
                ) from error
            log.warning("LoadCheckpoint: left out, of another shape: %s", _few(unlike))

    def _refuse(self, names: list[str], what: str, option: str, allowed: bool) -> None:
        if names and not allowed:
            raise CheckpointError(
                f"{self._start}: {len(names)} {what} ({_few(names)}); {option}=True goes on"
            )

    @property
    def _start(self) -> str:
        return f"LoadCheckpoint: {str(self.checkpoint_path)!r}"


def _weights_of(path: Path, view: str) -> Mapping[str, Any]:
    try:
        from hatbus_checkpoint import weights_of
    except ImportError as error:
        raise PluginError(
            "LoadCheckpoint reads with hatbus-checkpoint, which is not installed: "
            "python -m pip install hatbus-checkpoint"
        ) from error
    return weights_of(path, view)


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
