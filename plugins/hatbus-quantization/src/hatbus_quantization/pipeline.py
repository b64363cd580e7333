"""``ModelConvertPipeline``: converters one after another. Source: ``hat``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

from torch import nn

from hatbus.discovery import build, is_config
from hatbus.errors import PluginError, did_you_mean
from hatbus.option_values import one_of
from hatbus_quantization.converters import CONVERTERS, QAT_MODES
from hatbus_quantization.load_checkpoint import LoadCheckpoint

WHERE: Final = "model_convert_pipeline"
NAMES: Final = {**CONVERTERS, "LoadCheckpoint": LoadCheckpoint}


class ModelConvertPipeline:
    """Converters, applied in order to a model.

    Args:
        converters: callables that take a model and return one (or None when they changed it); or
            configs such as ``dict(type="Float2QAT")``.
        qat_mode: for the converters that have none of their own: ``"fuse_bn"`` or ``"with_bn"``.
        qconfig_params: ``dict(backend="x86")``, the engine for converters of the default one.

    Raises:
        HatbusError: something that is no converter, or a value that is not accepted.
    """

    config_types: ClassVar[Mapping[str, Any]] = NAMES

    def __init__(
        self,
        converters: Sequence[Any] | Callable[[nn.Module], Any] | Mapping[str, Any],
        qat_mode: str | None = None,
        qconfig_params: Mapping[str, Any] | None = None,
    ) -> None:
        if qat_mode is not None:
            one_of(f"{WHERE}: qat_mode", qat_mode, QAT_MODES)
        listed = converters if isinstance(converters, (list, tuple)) else [converters]
        self.converters: list[Any] = [
            build(one, WHERE, NAMES) if is_config(one) else one for one in listed
        ]
        for one in self.converters:
            if not callable(one):
                raise PluginError(
                    f"{WHERE}: {one!r} is no converter; accepted: callables that take a model and "
                    "return one, and dict(type=...) of one"
                )
        self._hand_down(qat_mode, dict(qconfig_params or {}))

    def __call__(self, model: nn.Module) -> nn.Module:
        """The converted model.

        Raises:
            PluginError: a converter returned something else.
        """
        for convert in self.converters:
            made = convert(model)
            if made is not None and not isinstance(made, nn.Module):
                raise PluginError(
                    f"{WHERE}: converter {convert!r} returned {type(made).__name__}; accepted: a "
                    "model, or None when it changed the one it got"
                )
            model = model if made is None else made
        return model

    def _hand_down(self, qat_mode: str | None, params: dict[str, Any]) -> None:
        backend = params.pop("backend", None)
        if params:
            name = next(iter(params))
            raise PluginError(
                f"{WHERE}: qconfig_params: {name!r} has no counterpart in torch's own quantisation"
                f"{did_you_mean(name, ['backend'])}"
            )
        for one in self.converters:
            if qat_mode is not None and getattr(one, "qat_mode", "") is None:
                one.qat_mode = qat_mode
            if backend is not None and hasattr(one, "backend"):
                one.backend = backend
