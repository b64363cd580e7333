"""``FuseBN``: batch norms folded into their convolutions while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.nn.modules.batchnorm import _BatchNorm

from hatbus import hookimpl, plugin
from hatbus.errors import CheckpointError
from hatbus.loop import structure_changed
from hatbus.parallel import refuse_sharded
from hatbus_model.calls import UNCALLED, reasons_by_run
from hatbus_model.folding import Fold, folds_of
from hatbus_model.fusion import Fusion, apply_fold, fuse, report
from hatbus_model.milestones import (
    Mark,
    as_data,
    check_names,
    due,
    in_order,
    previewed,
    read_marks,
)
from hatbus_model.step_calls import reasons_in_step
from hatbus_model.surgery import replace_in_optimizer
from hatbus_model.traced_calls import reasons_by_trace

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hatbus.loop import Context


@plugin(stage="train")
class FuseBN:
    """Folds each batch norm into the convolution directly before it in a Sequential or ModuleList.

    ``W' = W * gamma / sqrt(var + eps)``, ``b' = (b - mean) * gamma / sqrt(var + eps) + beta``: the
    model's outputs in eval mode stay the same. An ``nn.Identity`` keeps the batch norm's place, so
    no other module changes its name. What cannot be folded is left as it is and named in a
    warning. So is a pair of which a forward pass with the step's batches, made beforehand, shows
    that the norm gets something else than the convolution gives, or that anything else uses that
    or their tensors. The fused weights go on training: they take their predecessors' places in the
    optimizer's groups, with a fresh optimizer state; averages (``ema``) are folded alike; a DDP
    wrapper is made anew. Source: ``hat.callbacks.FuseBN``.

    Args:
        modules: lists of module names; a name stands for the module and all below it, ``""`` for
            the model.
        step_or_epoch: when to fuse each list, from 0; reached at the first index not less.
        update_by: ``"step"`` or ``"epoch"``: the unit of the numbers.
        inplace: write into the convolutions' own tensors instead of putting new modules.

    Raises:
        JobError: a value that cannot be used; at loop begin, an unknown module.
    """

    def __init__(
        self,
        modules: list[list[str]],
        step_or_epoch: list[int],
        update_by: str,
        inplace: bool = False,
    ) -> None:
        self.update_by, self.inplace = update_by, inplace
        self.marks = read_marks("fuse_bn", modules, step_or_epoch, update_by)
        self.folds: list[Fold] = []
        self._done: list[Mark] = []
        self._waiting: dict[str, list[str]] = {}
        self._ctx: Context | None = None

    @hookimpl
    def on_loop_begin(self, model: nn.Module, ctx: Context | None = None, **_more: Any) -> None:
        """Checks the module names."""
        check_names("fuse_bn", self.marks, model)
        if ctx is None:  # called outside a run
            return
        refuse_sharded(ctx.model, "fuse_bn", "fuse it before, or train with DDP")
        self._ctx = ctx

    @hookimpl
    def on_step_begin(self, ctx: Context) -> None:
        """Fuses what is due; the step's batches show how the modules are called."""
        self._pass_marks(ctx, ctx.global_step_id if self.update_by == "step" else ctx.epoch_id)

    def process(
        self,
        model: nn.Module,
        name: str,
        inplace: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
        probe: Callable[[], Any] | None = None,
    ) -> Fusion:
        """Fuses one module of a model, in place, and says what it left.

        Args:
            model: the raw model.
            name: of the module.
            inplace: keep the convolutions' own tensors.
            optimizer: made to follow, if given.
            probe: runs the model forward and gives its outputs, as ``lambda: model(batch)``, which
                shows how its modules are called; without it ``torch.fx`` traces the model.

        Raises:
            JobError: there is no such module.
        """
        if probe is None:
            look = partial(reasons_by_trace, model, inplace=inplace)
        else:
            look = partial(reasons_by_run, model, run=probe, inplace=inplace)
        fusion = fuse(model, name, look, optimizer, inplace=inplace)
        report(name, fusion)
        return fusion

    def __call__(self, model: nn.Module) -> None:
        """Fuses all its modules at once, in place: a converter for ``model_convert_pipeline``."""
        for name in (n for mark in self.marks for n in mark.modules):
            self.process(model, name, self.inplace)

    def preview_marks(self, ctx: Context) -> list[tuple[int, str]]:
        """``(global step, label)`` of everything this will do."""
        return previewed("fuse", self.marks, self.update_by, ctx)

    def state_dict(self) -> dict[str, Any]:
        """What was folded, and which marks are behind us."""
        passed = {"passed": len(self._done), "by": as_data(self._done), "unit": self.update_by}
        waiting = {name: list(tried) for name, tried in self._waiting.items()}
        folds = [list(astuple(fold)) for fold in self.folds]
        return {"folds": folds, "waiting": waiting, **passed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Folds again what was folded, so that the weights which come next fit.

        Raises:
            CheckpointError: this model was fused beyond the checkpoint, or has not what it fused,
                or this run would not have fused it.
        """
        folds = [Fold(*entry) for entry in state["folds"]]
        if self.folds != folds[: len(self.folds)]:
            raise CheckpointError("fuse_bn: this model is fused already; load into a fresh one")
        self._done = self._passed_before(state)
        self._waiting = {str(n): list(tried) for n, tried in state.get("waiting", {}).items()}
        if self._ctx is not None:
            for fold in folds[len(self.folds) :]:
                self._fold_again(self._ctx, fold)
            if len(folds) > len(self.folds):
                self._followed(self._ctx, folds[len(self.folds) :])

    def _passed_before(self, state: dict[str, Any]) -> list[Mark]:
        """The marks that the saved run had passed; this run has to have them too.

        Raises:
            CheckpointError: it has not, and a fold cannot be undone.
        """
        left = in_order(self.marks)
        passed = state.get("by", as_data(left)[: int(state["passed"])])  # older ones have a count
        found = []
        for names, at in passed:
            mark = Mark(tuple(names), at)
            if mark not in left or state.get("unit", self.update_by) != self.update_by:
                raise CheckpointError(
                    f"fuse_bn: the saved run has fused {', '.join(map(repr, names))} at "
                    f"{state.get('unit', self.update_by)} {at}, which cannot be undone; leave that "
                    "mark as it was (others may be added), or resume from a checkpoint before it"
                )
            left.remove(mark)
            found.append(mark)
        return found

    def _pass_marks(self, ctx: Context, now: int) -> None:
        left = in_order(self.marks)
        for mark in self._done:
            left.remove(mark)
        reached = due(left, 0, now)
        self._done += reached
        self._waiting.update({n: [] for mark in reached for n in mark.modules})
        if self._waiting:
            self._fuse(ctx)

    def _fuse(self, ctx: Context) -> None:
        """Fuses what waits for it; what only another task calls goes on waiting for that task."""
        tasks = list(dict.fromkeys(task for task, _, _ in ctx.batches if task is not None))
        folds: list[Fold] = []
        for name, tried in list(self._waiting.items()):
            if tried and set(tasks) <= set(tried):
                continue
            look = partial(reasons_in_step, ctx, inplace=self.inplace)
            fusion = fuse(ctx.model, name, look, ctx.optimizer, inplace=self.inplace)
            folds += fusion.folds
            self._waiting[name] = [*tried, *(t for t in tasks if t not in tried)]
            uncalled = [norm for norm, reason in fusion.left.items() if reason == UNCALLED]
            more = set(getattr(ctx.data, "tasks", ())) - set(self._waiting[name])
            if uncalled and more:
                for norm in uncalled:
                    del fusion.left[norm]
            else:
                del self._waiting[name]
            report(name, fusion, goes_on=name in self._waiting)
        if folds:
            self._followed(ctx, folds)

    def _fold_again(self, ctx: Context, fold: Fold) -> None:
        modules = dict(ctx.model.named_modules())
        if not isinstance(modules.get(fold.norm), _BatchNorm) or fold.conv not in modules:
            raise CheckpointError(
                f"fuse_bn: the checkpoint folded {fold.norm!r} into {fold.conv!r}, "
                "which the model does not have; is it another model?"
            )
        replaced = apply_fold(ctx.model, fold, ctx.optimizer, inplace=self.inplace)
        if ctx.optimizer is not None:
            replace_in_optimizer(ctx.optimizer, replaced)

    def _followed(self, ctx: Context, folds: list[Fold]) -> None:
        """Lets everything else follow; averages by the list of folds."""
        self.folds += folds
        folds_of(ctx).extend(folds)
        structure_changed(ctx)
