"""``FreezeModule``: parts of a model stop training at a step or epoch, and may go on later."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from hatbus import hookimpl, plugin
from hatbus.errors import JobError
from hatbus.log import log
from hatbus.loop import find_module, has_module, structure_changed, structure_of
from hatbus_model import freezing
from hatbus_model.freezing import keep_in_eval
from hatbus_model.milestones import as_data, check_names, due, in_order, previewed, read_marks

if TYPE_CHECKING:
    from torch import nn

    from hatbus.loop import Context

_FREEZERS: Final = "model.freezers"


@plugin(stage="train")
class FreezeModule:
    """Freezes modules: eval mode, no gradients, so that no momentum or weight decay moves them.

    A frozen module stays so after ``model.train()`` and after a resume. A mark is reached at the
    first step or epoch whose index is not less. What several marks or instances freeze goes on when
    the last of them lets it. Source: ``hat.callbacks.FreezeModule``.

    Args:
        modules: lists of module names; a name stands for the module and all below it, ``""`` for
            the model. Modules beside the model have names too, such as ``"loss"``.
        step_or_epoch: when to freeze each list, from 0.
        update_by: ``"step"`` or ``"epoch"``: the unit of the numbers.
        only_batchnorm: freeze only the statistics of the batch norms; all weights go on training.
        unfreeze_at: when to let each list go on, None for never; the same unit.

    Raises:
        JobError: a value that cannot be used; at loop begin, an unknown module; at a mark, when
            nothing is left to train.
    """

    def __init__(
        self,
        modules: list[list[str]],
        step_or_epoch: list[int],
        update_by: str,
        only_batchnorm: bool = False,
        unfreeze_at: list[int | None] | None = None,
    ) -> None:
        self.update_by, self.only_batchnorm = update_by, only_batchnorm
        self.marks = read_marks("freeze_module", modules, step_or_epoch, update_by)
        ends: list[int | None] = [None] * len(modules) if unfreeze_at is None else unfreeze_at
        self.ends = read_marks("freeze_module", modules, ends, update_by, "unfreeze_at")
        self.frozen: dict[str, list[str]] = {}
        self.in_eval: dict[str, list[str]] = {}
        self._begun = self._ended = 0
        self._freezers = [self]
        self._kept: list[nn.Module] = []
        self._structure = -1
        self._ctx: Context | None = None

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Checks the module names."""
        check_names("freeze_module", self.marks, ctx.all_modules)
        self._ctx = ctx
        self._freezers = ctx.storage.setdefault(_FREEZERS, [])
        if self not in self._freezers:
            self._freezers.append(self)

    @hookimpl
    def on_epoch_begin(self, ctx: Context) -> None:
        """Freezes what is due."""
        if self.update_by == "epoch":
            self._pass_marks(ctx, ctx.epoch_id)

    @hookimpl
    def on_step_begin(self, ctx: Context) -> None:
        """Freezes what is due, and what was put in the place of something frozen."""
        if self._structure != structure_of(ctx):
            self._find_kept(ctx)
        if self.update_by == "step":
            self._pass_marks(ctx, ctx.global_step_id)

    @hookimpl
    def on_forward_begin(self, ctx: Context) -> None:
        """Puts back to eval mode what ``model.train()`` has changed."""
        if self._structure != structure_of(ctx):
            self._find_kept(ctx)
        keep_in_eval(self._kept)

    def process(self, model: nn.Module, name: str) -> None:
        """Freezes one module in place, once."""
        module = find_module(model, name, "freeze_module: modules")
        if name in self.frozen:
            return
        inside = freezing.parts(module, only_batchnorm=self.only_batchnorm)
        self.in_eval[name] = freezing.to_eval(inside, self._modes_held(model))
        stopped = [] if self.only_batchnorm else freezing.freeze(module, self._held(model))
        self.frozen[name] = stopped

    def preview_marks(self, ctx: Context) -> list[tuple[int, str]]:
        """``(global step, label)`` of everything this will do."""
        verb = "freeze statistics of" if self.only_batchnorm else "freeze"
        begins = previewed(verb, self.marks, self.update_by, ctx)
        return sorted(begins + previewed("unfreeze", self.ends, self.update_by, ctx))

    def state_dict(self) -> dict[str, Any]:
        """What is frozen, what it was before, and which marks said so and are behind us."""
        frozen = {name: list(stopped) for name, stopped in self.frozen.items()}
        in_eval = {name: list(before) for name, before in self.in_eval.items()}
        counts = {"begun": self._begun, "ended": self._ended, "by": self._by()}
        return {"frozen": frozen, "in_eval": in_eval, **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Freezes what was frozen, and lets go what was not; of other marks, what these say."""
        frozen, in_eval = (
            {str(name): [str(n) for n in found] for name, found in state.get(key, {}).items()}
            for key in ("frozen", "in_eval")
        )
        begun, ended = int(state["begun"]), int(state["ended"])
        is_same = state["by"] == self._by() if "by" in state else self._fits(frozen, begun, ended)
        self._begun, self._ended = (begun, ended) if is_same else (0, 0)
        if not is_same:
            log.warning("freeze_module: from here other marks than the saved run's")
        if self._ctx is None:
            return
        for name in list(self.frozen):
            self._release(self._ctx.all_modules, name)
        if is_same:  # other marks are passed when the first step begins, up to where the run is
            for name in frozen:
                self.process(self._ctx.all_modules, name)
            self.frozen, self.in_eval = frozen, self.in_eval | in_eval  # none in an older state
        self._changed(self._ctx)

    def _by(self) -> dict[str, Any]:
        """What decides on what is frozen, as plain data."""
        marks = {"begin": as_data(self.marks), "end": as_data(self.ends)}
        return {**marks, "update_by": self.update_by, "only_batchnorm": self.only_batchnorm}

    def _fits(self, frozen: Mapping[str, Any], begun: int, ended: int) -> bool:
        """Whether these marks freeze what an older checkpoint, which names no marks, has frozen."""
        begins, ends = in_order(self.marks), in_order(self.ends)
        known = {name for mark in begins[:begun] for name in mark.modules}
        gone = {name for mark in ends[:ended] for name in mark.modules}
        is_long = begun <= len(begins) and ended <= len(ends)
        return is_long and known - gone <= frozen.keys() <= known

    def _pass_marks(self, ctx: Context, now: int) -> None:
        begun = due(self.marks, self._begun, now)
        ended = due(self.ends, self._ended, now)
        if not begun and not ended:
            return
        self._begun, self._ended = self._begun + len(begun), self._ended + len(ended)
        reached = [(mark.at, False, mark) for mark in begun] + [(m.at, True, m) for m in ended]
        for _, ends, mark in sorted(reached, key=itemgetter(0, 1)):
            for name in mark.modules:
                if not ends:
                    self.process(ctx.all_modules, name)
                elif name in self.frozen:
                    self._release(ctx.all_modules, name)
        if not any(p.requires_grad for p in ctx.all_modules.parameters()):
            raise JobError(
                f"freeze_module: from {self.update_by} {now} on nothing is left to train; frozen: "
                f"{', '.join(map(repr, self.frozen))}"
            )
        self._changed(ctx)

    def _release(self, model: nn.Module, name: str) -> None:
        """Unfreezes one module; what lies in it and was frozen by another name stays so."""
        stopped, before = self.frozen.pop(name), self.in_eval.pop(name)
        if not has_module(model, name):
            return
        module = find_module(model, name, "freeze_module: modules")
        if not self.only_batchnorm:
            freezing.unfreeze(module, stopped, self._held(model))
        inside = freezing.parts(module, only_batchnorm=self.only_batchnorm)
        freezing.to_train(inside, before, self._modes_held(model))

    def _held(self, model: nn.Module) -> dict[nn.Parameter, bool]:
        """What this and other instances of the run have frozen."""
        return freezing.held(model, (f.frozen for f in self._freezers if not f.only_batchnorm))

    def _modes_held(self, model: nn.Module) -> dict[nn.Module, bool]:
        """What this and other instances of the run keep in eval mode."""
        return freezing.modes_held(model, ((f.only_batchnorm, f.in_eval) for f in self._freezers))

    def _changed(self, ctx: Context) -> None:
        if not self.only_batchnorm:
            structure_changed(ctx)
        self._find_kept(ctx)

    def _find_kept(self, ctx: Context) -> None:
        """The modules to keep in eval mode; other plugins may have replaced some."""
        for name in [n for n in self.frozen if not has_module(ctx.all_modules, n)]:
            log.warning("freeze_module: the model has no %r any more; it is frozen no longer", name)
            del self.frozen[name], self.in_eval[name]
        found = [find_module(ctx.all_modules, n, "freeze_module: modules") for n in self.frozen]
        only = self.only_batchnorm
        inside = (freezing.parts(m, only_batchnorm=only).values() for m in found)
        self._kept = [module for part in inside for module in part]
        new = [p for m in found for p in m.parameters() if p.requires_grad and not only]
        for parameter in new:
            parameter.requires_grad_(False)
        if new:
            structure_changed(ctx)
        self._structure = structure_of(ctx)
        keep_in_eval(self._kept)
