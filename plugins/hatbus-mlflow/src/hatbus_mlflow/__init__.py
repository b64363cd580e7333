"""hatbus plugin: a run's settings, metrics, images, texts and checkpoints for MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_mlflow.mlflow import MLflow

__all__ = ["MLflow"]

__getattr__ = lazily(__name__, MLflow="mlflow")
