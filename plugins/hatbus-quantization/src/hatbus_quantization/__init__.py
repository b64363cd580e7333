"""hatbus plugins: from a float model to a quantised one, stage by stage, on torch's own tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_quantization.converters import (
        Calibration2QAT,
        Float2Calibration,
        Float2QAT,
        Float2Traced,
        FuseBN,
        QAT2Quantize,
    )
    from hatbus_quantization.freeze_observers import FreezeObservers
    from hatbus_quantization.load_checkpoint import LoadCheckpoint
    from hatbus_quantization.pipeline import ModelConvertPipeline

__all__ = [
    "Calibration2QAT",
    "Float2Calibration",
    "Float2QAT",
    "Float2Traced",
    "FreezeObservers",
    "FuseBN",
    "LoadCheckpoint",
    "ModelConvertPipeline",
    "QAT2Quantize",
]

__getattr__ = lazily(
    __name__,
    Calibration2QAT="converters",
    Float2Calibration="converters",
    Float2QAT="converters",
    Float2Traced="converters",
    FuseBN="converters",
    QAT2Quantize="converters",
    FreezeObservers="freeze_observers",
    LoadCheckpoint="load_checkpoint",
    ModelConvertPipeline="pipeline",
)
