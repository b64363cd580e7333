# Written by docs/refresh.py out of the entry points of hatbus's own plugins.
"""Every installed callback by its class name; type checkers and editors know hatbus's own here."""

from typing import Any

from hatbus.events.callback_mixin import CallbackMixin as CallbackMixin
from hatbus_checkpoint.checkpoint import Checkpoint as Checkpoint
from hatbus_checkpoint.predictions import Predictions as Predictions
from hatbus_export.save_traced import SaveTraced as SaveTraced
from hatbus_grad.closure import Closure as Closure
from hatbus_grad.grad_clip import GradClip as GradClip
from hatbus_grad.grad_scale import GradScale as GradScale
from hatbus_hosts.lightning_callback import LightningCallback as LightningCallback
from hatbus_hosts.orchard_hooks import OrchardHooks as OrchardHooks
from hatbus_hosts.transformers_callback import TransformersCallback as TransformersCallback
from hatbus_lr.cos_lr import CosLrUpdater as CosLrUpdater
from hatbus_lr.cosine_annealing_lr import CosineAnnealingLrUpdater as CosineAnnealingLrUpdater
from hatbus_lr.cyclic_lr import CyclicLrUpdater as CyclicLrUpdater
from hatbus_lr.noam_lr import NoamLrUpdater as NoamLrUpdater
from hatbus_lr.one_cycle_lr import OneCycleUpdater as OneCycleUpdater
from hatbus_lr.poly_lr import PolyLrUpdater as PolyLrUpdater
from hatbus_lr.step_decay_lr import StepDecayLrUpdater as StepDecayLrUpdater
from hatbus_lr.torch_lr import TorchLr as TorchLr
from hatbus_mlflow.mlflow import MLflow as MLflow
from hatbus_model.ema import ExponentialMovingAverage as ExponentialMovingAverage
from hatbus_model.freeze_bn_statistics import FreezeBNStatistics as FreezeBNStatistics
from hatbus_model.freeze_module import FreezeModule as FreezeModule
from hatbus_model.fuse_bn import FuseBN as FuseBN
from hatbus_model.mean_teacher import MeanTeacher as MeanTeacher
from hatbus_monitor.csv_log import CsvLog as CsvLog
from hatbus_monitor.grad_monitor import GradMonitor as GradMonitor
from hatbus_monitor.jsonl_log import JsonlLog as JsonlLog
from hatbus_monitor.metric_updater import MetricUpdater as MetricUpdater
from hatbus_monitor.nan_guard import NanGuard as NanGuard
from hatbus_monitor.progress import Progress as Progress
from hatbus_monitor.stats_monitor import StatsMonitor as StatsMonitor
from hatbus_optuna.optuna_pruning import OptunaPruning as OptunaPruning
from hatbus_quantization.freeze_observers import FreezeObservers as FreezeObservers
from hatbus_tensorboard.tensorboard import TensorBoard as TensorBoard
from hatbus_trackio.trackio import Trackio as Trackio
from hatbus_validation.early_stopping import EarlyStopping as EarlyStopping
from hatbus_validation.mean_teacher_validation import MeanTeacherValidation as MeanTeacherValidation
from hatbus_validation.validation import Validation as Validation
from hatbus_wandb.wandb import Wandb as Wandb

def __getattr__(name: str) -> Any: ...  # the callbacks of other distributions
