"""``PluginContract``: what every plugin keeps, as tests; subclass it and say how to make yours.

::

    class TestLossWatcher(PluginContract):
        observer = True                      # it changes nothing that trains

        def make(self):
            return LossWatcher(every=5)

Each test is one clause. A failure is a ``ContractFailure`` whose message names the fault; what the
plugin or the bus raises comes through as it is.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any, Final

from hatbus.bus import caller_name
from hatbus.data import AllTasks, OneTask
from hatbus.errors import PluginError
from hatbus.events import MOMENT, declaration_of, is_declared
from hatbus.insight import Profile
from hatbus.testing import halves
from hatbus.testing.callers import inside_a_step, own_line
from hatbus.testing.failures import Failure, failing
from hatbus.testing.reads import Reads
from hatbus.testing.saving import Resume, Save
from hatbus.testing.subject import Subject, first_unequal, skip
from hatbus.testing.surroundings import Surroundings, settings
from hatbus.testing.trees import copied, difference, without
from hatbus.testing.trial import Trial, overwritten
from hatbus.testing.verdict import fail

FAILURES: Final = (
    ("setup", "on_loop_begin"),
    ("report", "on_loop_begin"),
    ("setup", "on_step_begin"),
    ("report", "on_batch_end"),
    ("report", "on_step_end"),
    ("setup", "on_epoch_end"),
    ("setup", "on_loop_end"),
)
"""Where another plugin fails: before this one (``setup``) or after it (``report``)."""
_SECOND: Final = "_again"
_ROUNDING: Final = {"rtol": 1e-4, "atol": 1e-6}


class PluginContract(Subject):
    """The contract between hatbus and a plugin; see ``Subject`` for what a subclass may say."""

    # ---- what it is ---------------------------------------------------------------------------

    def test_registers(self) -> None:
        """It is a new instance each time, and the bus takes it."""
        plugin, other = self.make(), self.make()
        if plugin is other:
            fail(f"{self.name}: make() gave the same object twice; make a new one each time")
        trial = self.trial({self.name: plugin})
        trial.trainer.bus.freeze()
        declared = declaration_of(plugin)
        if self.name in (*declared.before, *declared.after):
            fail(f"{self.name} is declared before or after itself; name another plugin")

    def test_declares_its_order(self) -> None:
        """Its class says in which stage it stands."""
        plugin = self.make()
        if not is_declared(plugin):
            fail(
                f"{type(plugin).__name__} declares no place in the order; put "
                "@plugin(stage='monitor'), or another stage, above the class"
            )

    def test_moments_return_nothing(self) -> None:
        """Its implementations of moments return None."""
        trial = self.with_plugin()
        found: list[str] = []

        def watched(event: Any, impl: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                result = impl.function(*args, **kwargs)
                if result is not None:
                    found.append(f"{event.name} returned {result!r:.80}")
                return result

            plain = event.kind == MOMENT and not impl.wrapper
            return call if plain and impl.plugin_name == self.name else impl.function

        trial.watch(watched)
        trial.fit(self.num_steps)
        if found:
            fail(f"{self.name}: {found[0]}; a moment is a notice and returns nothing")

    def test_claims_what_it_writes(self) -> None:
        """What it changes in the optimizer's groups, it declares in ``writes``."""
        trial = self.with_plugin().fit(self.num_steps)
        plain = self.without_plugin().fit(self.num_steps)
        claims = declaration_of(trial.trainer.bus.members[self.name].plugin).writes
        for step, name, on, off in first_unequal(trial.steps, plain.steps):
            if name != "groups":
                continue
            for mine, theirs in zip(on, off, strict=False):
                for field in ("lr", "momentum", "weight_decay", "betas"):
                    changed = field in mine and mine[field] != theirs.get(field)
                    if changed and f"optimizer.{field}" not in claims:
                        fail(
                            f"{self.name} changed optimizer.{field} at step {step} and does not "
                            f"say so; declare @plugin(writes='optimizer.{field}')"
                        )

    # ---- state --------------------------------------------------------------------------------

    def test_state_round_trip(self) -> None:
        """The state that it gives is the state that it takes, and has the keys it names."""
        plugin = self.make()
        gives, takes = (hasattr(plugin, n) for n in ("state_dict", "load_state_dict"))
        if gives != takes:
            have, lack = ("state_dict", "load_state_dict")[:: 1 if gives else -1]
            fail(f"{self.name} has {have} and no {lack}; define both, or neither")
        if not gives:
            skip("the plugin has no state")
        saved = self._saved(self.num_steps // 2)
        for key in getattr(plugin, "rank_state", ()):
            if key not in saved["plugins"][self.name]:
                fail(f"{self.name} names {key!r} in rank_state; its state_dict() has no such key")
        resume = Resume(saved)
        trial = self.trial({self.name: self.make(), "resume": resume})
        trial.fit(self.num_steps)
        for name, state in saved["plugins"].items():
            found = difference(state, resume.loaded.get(name), f"state of {name}")
            if found:
                fail(f"{found}: it is not what was saved after load_state_dict")

    def test_resumes_as_if_never_stopped(self) -> None:
        """A run that was killed and resumed ends as the run without a break, bit for bit."""
        steps = self.with_plugin().trainer.ctx.steps_per_epoch or 4
        whole = self.with_plugin().fit(self.num_steps)
        expected = self._ending(whole)
        for after in (steps + max(1, steps // 2), 2 * steps):
            self._compare_resumed(whole, expected, after)

    def _compare_resumed(self, whole: Trial, expected: dict[str, Any], after: int) -> None:
        saved = self._saved(after)
        resumed = self.trial({self.name: self.make(), "resume": Resume(saved)})
        resumed.fit(self.num_steps)
        found = difference(expected, self._ending(resumed), "")
        if not found:
            published = self.stable_logs(whole, after), self.stable_logs(resumed, after)
            found = difference(published[0], published[1], "published values")
        if found:
            fail(
                f"{self.name}: a run resumed after step {after} of {self.num_steps} is not the run "
                f"without a break: {found}; keep in state_dict() what the plugin remembers"
            )

    def _saved(self, after: int) -> dict[str, Any]:
        """The state of a run that is killed two steps after it was saved."""
        save, kill = Save(after), failing("on_step_end", step=after + 1)
        trial = self.with_plugin({"save": save, "kill": kill})
        with suppress(Failure):
            trial.fit(max(self.num_steps, after + 3))
        if not save.saved:
            fail(f"{self.name}: the run ended before step {after}, so nothing could be saved")
        return save.saved

    def _ending(self, trial: Trial) -> dict[str, Any]:
        plugin = trial.trainer.bus.members[self.name].plugin
        names = (*self.companions(), self.name)
        end = {**trial.end(names), "outcome": copied(self.outcome(plugin), "outcome")}
        return {**end, "plugin state": without(end["plugin state"], self.volatile)}

    # ---- training -----------------------------------------------------------------------------

    def test_off_means_bit_identical(self) -> None:
        """Made and not used, it changes no bit of a run."""
        before = settings()
        plain = self.without_plugin().fit(self.num_steps)
        trial = self.trial({self.name: self.make()})
        trial.trainer.bus.unregister(self.name)
        trial.fit(self.num_steps)
        found = difference(before, settings(), "")
        if found:
            fail(f"{self.name}: making it changes the process: {found}")
        self._same_run(plain, trial, "made but off")

    def test_observer_changes_nothing(self) -> None:
        """An observer leaves weights, optimizer, modes and random state as they would be."""
        if not self.observer:
            skip("the plugin is no observer; set observer = True if it only watches")
        before = copied(_random(), "")
        self.make()
        if difference(before, _random()):
            fail(f"{self.name}: making it draws random numbers; use a generator of its own")
        self._same_run(
            self.without_plugin().fit(self.num_steps),
            self.with_plugin().fit(self.num_steps),
            "an observer",
        )

    def _same_run(self, plain: Trial, trial: Trial, what: str) -> None:
        """Raises ContractFailure at the first thing that differs."""
        if len(plain.steps) != len(trial.steps):
            fail(
                f"{self.name} is {what}, and the run has {len(trial.steps)} steps, without it "
                f"{len(plain.steps)}"
            )
        for step, name, off, on in first_unequal(plain.steps, trial.steps):
            found = difference(off, on, name)
            if found:
                fail(f"{self.name} is {what}, but at step {step} {found} (without and with it)")

    def test_reads_no_values_between_intervals(self) -> None:
        """In a step it waits for no accelerator, but in those that ``reads_every`` allows."""
        if self.reads_every == 1:
            skip("the plugin may read values in every step (reads_every = 1)")
        trial, found = self.with_plugin(), []
        ctx, bus = trial.trainer.ctx, trial.trainer.bus

        def note(name: str) -> None:
            quiet = not self.reads_every or (ctx.global_step_id + 1) % self.reads_every
            frame = sys._getframe(1)  # noqa: SLF001 - who reads is in the stack
            inside = inside_a_step(frame)
            if quiet and inside and caller_name(frame, bus.callers) == self.name:
                found.append(f"{name} at step {ctx.global_step_id}, {own_line(frame)}")

        with Reads(note):
            trial.fit(self.num_steps)
        if found:
            n = self.reads_every
            allowed = f" = {n}: in steps {n - 1}, {2 * n - 1}, ... by global_step_id" if n else ""
            fail(
                f"{self.name} reads values from tensors: {found[0]} ({len(found)} in "
                f"{self.num_steps} steps), which makes the host wait for a GPU; keep tensors on "
                f"the device and read them at an interval (reads_every{allowed})"
            )

    # ---- in company ---------------------------------------------------------------------------

    def test_survives_failures_of_others(self) -> None:
        """When another plugin fails, its error ends the run; nothing is left behind."""
        for stage, event in FAILURES:
            self._fit_with_failing(stage, event)
        surroundings = Surroundings()
        trial = self.with_plugin().fit(self.num_steps)
        left = surroundings.left_over(trial.trainer.ctx.model)
        if left:
            fail(f"{self.name} left behind after a run: {left}; undo it in on_loop_end")

    def _fit_with_failing(self, stage: str, event: str) -> None:
        surroundings = Surroundings()
        trial = self.with_plugin({"failing": failing(event, stage=stage)})
        ends = self._count_ends(trial)
        where = f"another plugin failed in {event} ({stage})"
        error: BaseException | None = None
        try:
            trial.fit(self.num_steps)
        except BaseException as raised:  # noqa: BLE001 - whatever comes is what is looked at
            error = raised
        if error is None:
            fail(f"{self.name}: {where}, and the error was swallowed; let exceptions pass")
        if not isinstance(error, Failure):
            fail(
                f"{self.name}: {where}, and {type(error).__name__}: {error} was raised in its place"
            )
        mine = [n for n in getattr(error, "__notes__", ()) if n.startswith("then ")]
        mine = [n for n in mine if f"plugin {self.name!r}" in n]
        if mine:
            fail(
                f"{self.name}: {where}, and then its own teardown failed: "
                f"{mine[0].removeprefix('then ')}; an end comes also when its begin did not"
            )
        if ends and len(ends) != 1:
            fail(f"{self.name}: {where}, and on_loop_end was called {len(ends)} times, not once")
        error.__traceback__ = None
        left = surroundings.left_over(trial.trainer.ctx.model)
        if left:
            fail(f"{self.name}: {where}, and left behind: {left}; undo it in on_loop_end")

    def _count_ends(self, trial: Trial) -> list[str]:
        """Filled with a word whenever the plugin's ``on_loop_end`` is called."""
        calls: list[str] = []

        def watched(event: Any, impl: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                calls.append(event.name)
                return impl.function(*args, **kwargs)

            mine = impl.plugin_name == self.name and event.name == "on_loop_end"
            return call if mine and not impl.wrapper else impl.function

        trial.watch(watched)
        return calls

    def test_two_instances_do_not_collide(self) -> None:
        """Two instances run side by side, or are refused with a word about their claims."""
        alone = self.with_plugin()
        shared = _class_state(alone.trainer.bus.members[self.name].plugin)
        alone.fit(self.num_steps)
        changed = difference(shared, _class_state(alone.trainer.bus.members[self.name].plugin))
        if changed:
            fail(
                f"{self.name}: class attribute {changed} (before and after a run), so all "
                "instances share it; set it in __init__"
            )
        self.new_folder()
        first = self.make()
        self.new_folder()
        try:
            both = self.trial({self.name: first, self.name + _SECOND: self.make_another()})
        except PluginError as error:
            if " both " in str(error):
                return  # both write or replace one thing: refused before anything runs
            raise
        both.fit(self.num_steps)
        name = overwritten(self.stable_logs(alone), alone, both)
        if name:
            fail(
                f"{self.name}: two instances publish unlike values as {name!r}, and the last one "
                "wins; begin the names with ctx.bus.log_prefix(self)"
            )
        if self.observer:
            ends = (run.end((self.name,))["plugin state"] for run in (alone, both))
            one, two = (without(state, self.volatile) for state in ends)
            found = difference(one, two, "its state")
            if found:
                fail(f"{self.name}: beside a second instance {found}; they share something")

    def test_works_under_accumulation(self) -> None:
        """A step of two half batches trains as one of a whole batch does."""
        whole = self.with_plugin().fit(self.num_steps // 2)
        data = halves.of(self.build()["data"])
        if data is None or not self.same_when_accumulated:
            self.with_plugin(accumulate=2).fit(self.num_steps // 2)
            return
        split = self.with_plugin(data=data, accumulate=2).fit(self.num_steps // 2)
        found = halves.unequal(whole.steps, split.steps, **_ROUNDING)
        if found:
            fail(
                f"{self.name}: with accumulate=2 {found}; count steps (on_step_end), not batches, "
                "or set same_when_accumulated = False"
            )

    def test_works_with_many_tasks(self) -> None:
        """It runs with several tasks in a step and with one task a step."""
        data = self.build()["data"]
        both = data if isinstance(data, dict) else {"a": data, "b": data}
        for sampler in (AllTasks, OneTask):
            trial = self.with_plugin(data=both, task_sampler=sampler())
            if self.tasks:
                plugin = trial.trainer.bus.unregister(self.name)
                trial.trainer.bus.register(plugin, self.name, overrides={"tasks": self.tasks})
            trial.fit(self.num_steps // 2)
            if self.observer:
                plain = self.without_plugin(data=both, task_sampler=sampler())
                plain.fit(self.num_steps // 2)
                self._same_run(plain, trial, "an observer of many tasks")

    def test_works_on_two_processes(self) -> None:
        """Two processes end with the same weights, and neither waits for the other for ever."""
        if not self.two_processes:
            skip("it takes seconds; set two_processes = True to run it")
        from hatbus.testing.two_processes import run_both

        found = run_both(self.folder, type(self))
        if found:
            fail(f"{self.name}: on two processes {found}")

    def test_overhead_is_reported(self, record_property: Any) -> None:
        """What it costs a step, in microseconds on this machine."""
        trial, profile = self.with_plugin(), Profile()
        profile.watch(trial.trainer.bus)
        trial.fit(4 * self.num_steps)
        seconds = sum(
            cost.seconds for (name, _), cost in profile.costs.items() if name == self.name
        )
        cost = seconds / max(1, profile.steps) * 1e6
        record_property("hatbus_us_per_step", (self.name, round(cost, 2)))
        if self.most_us_per_step is not None and cost > self.most_us_per_step:
            fail(f"{self.name} costs {cost:.1f} us a step; allowed: {self.most_us_per_step:g}")


def _random() -> dict[str, Any]:
    from hatbus import rng

    return rng.capture()


def _class_state(plugin: object) -> dict[str, Any]:
    """The values of a class's own attributes that can change in place."""
    found = {}
    for cls in type(plugin).__mro__:
        if cls.__module__.partition(".")[0] not in ("builtins", "torch", "abc", "typing"):
            for name, value in vars(cls).items():
                if isinstance(value, (list, dict, set)) and not name.startswith("__"):
                    found[f"{cls.__name__}.{name}"] = (len(value), f"{value!r:.2000}")
    return found
