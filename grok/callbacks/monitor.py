"""`GrokkingMonitor`: when the training data were memorised, when held-out queries were answered, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import lightning as L

from grok.callbacks.console import BAR, say
from grok.data import RegimeDataModule
from grok.errors import Problem, insist
from grok.phases import numeral
from grok.records import Milestones
from grok.training import GrokModule

__all__ = ["GrokkingMonitor"]


class GrokkingMonitor(L.Callback):
    """Follows the accuracy of every split, says when a milestone is passed, and may end the run after grokking.

    A spike, accuracy that falls by half or more from one evaluation to the next, is said too; all are listed in
    `summary.json`.

    Args:
        threshold: accuracy that counts as memorised (training queries) and as grokked (held-out queries).
        window: a sustained crossing needs the median of this many evaluations.
        stop_after: optimizer steps to go on after the first held-out split has grokked for good (sustained); None
            trains to the end.
        lines: print one line of accuracies per evaluation, unless a progress bar shows them.
        phase_levels: accuracy at which a phase of the regime ends, by its name, instead of the regime's own.
    """

    def __init__(
        self,
        threshold: float = 0.95,
        window: int = 5,
        stop_after: int | None = None,
        lines: bool = True,
        phase_levels: dict[str, float] | None = None,
    ) -> None:
        insist(self.check(threshold, window, stop_after, phase_levels))
        self.threshold, self.window, self.stop_after, self.lines = threshold, window, stop_after, lines
        self.phase_levels: Mapping[str, float] = phase_levels or {}
        self.milestones = Milestones(None, (), threshold, window=window)

    @staticmethod
    def check(
        threshold: float = 0.95,
        window: int = 5,
        stop_after: int | None = None,
        phase_levels: Mapping[str, float] | None = None,
    ) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        problems = []
        if not 0 < threshold <= 1:
            problems.append(Problem("threshold", threshold, "use an accuracy in (0, 1]"))
        if window < 1:
            problems.append(Problem("window", window, "use 1 or more evaluations"))
        if stop_after is not None and stop_after < 0:
            problems.append(Problem("stop_after", stop_after, "use 0 or more optimizer steps, or null"))
        if not all(0 < level <= 1 for level in (phase_levels or {}).values()):
            problems.append(Problem("phase_levels", phase_levels, "use accuracies in (0, 1]"))
        return problems

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the names of the splits and phases to watch from the data."""
        data = cast(RegimeDataModule, cast(Any, trainer).datamodule)
        self.milestones.memorised_split = data.memorised_split
        self.milestones.held_out_splits = data.held_out_splits
        names = [phase.name for phase in data.phases]
        if wrong := [name for name in self.phase_levels if name not in names]:
            fix = f"{type(data).__name__} has no such phase; use {', '.join(names) or 'null, as it has none'}"
            insist([Problem("monitor.phase_levels", wrong[0], fix)])
        self.milestones.phases = tuple(
            replace(phase, level=self.phase_levels.get(phase.name, phase.level))
            for phase in data.phases
            if phase.split in data.splits  # none that cannot end, as where nothing is OOD
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that was cut short after it had decided to stop has stopped."""
        self._stop_if_done(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the accuracies of this evaluation."""
        scores = cast(GrokModule, pl_module).scores
        accuracy = {name: score.accuracy for name, score in scores.items() if score.accuracy is not None}
        step = trainer.global_step
        if self.lines and not BAR:
            shown = {name: f"{100 * value:.1f} %" for name, value in accuracy.items()}
            shown = shown or {f"loss of {name}": f"{score.loss:.4g}" for name, score in scores.items()}
            say(f"step {step:>7}  " + "  ".join(f"{name} {value}" for name, value in shown.items()))
        if trainer.state.fn != "fit" or (self.milestones.steps and self.milestones.steps[-1] >= step):
            return
        sizes = {name: score.n for name, score in scores.items()}
        for split, level in self.milestones.update(step, accuracy, sizes):
            self._announce(split, level, accuracy, sizes)
        self._announce_phases(step, accuracy)
        for spike in self.milestones.spikes:
            if spike["step"] == step:
                fell = f"from {100 * spike['before']:.1f} % to {100 * spike['after']:.1f} %"
                say(f">>> spike at step {step}: {spike['split']} fell {fell}")
        self._stop_if_done(trainer)

    def _announce(self, split: str, level: float, accuracy: dict[str, float], sizes: dict[str, int]) -> None:
        step = self.milestones.steps[-1]
        held_out = next((name for name in self.milestones.held_out_splits if name in accuracy), None)
        if split == self.milestones.memorised_split and level == self.threshold:
            beside = f", {held_out} at {100 * accuracy[held_out]:.1f} %" if held_out else ""
            say(f">>> memorised at step {step}: {split} {100 * accuracy[split]:.1f} %{beside}")
        elif split in self.milestones.held_out_splits:
            small = f" (only {sizes[split]} queries)" if sizes[split] < 100 else ""
            say(f">>> {split} passed {100 * level:g} % at step {step}{small}")

    def _announce_phases(self, step: int, accuracy: Mapping[str, float]) -> None:
        found = self.milestones.phase_spans
        names = list(found)
        following = dict(pairwise(names))
        for name in names:
            if found[name].end == step:
                after = following.get(name)
                told = f"phase {numeral(names, name)} ({name}) ended at step {step}"
                then = "" if after is None else f"; phase {numeral(names, after)} ({after}) begins"
                say(f">>> {told}: {found[name].split} {100 * accuracy[found[name].split]:.1f} %{then}")

    def _stop_if_done(self, trainer: L.Trainer) -> None:
        if self.stop_after is None or not self.milestones.grok_step:
            return
        split = next(iter(self.milestones.grok_step))
        grokked = self.milestones.step_of(split, self.threshold, sustained=True)
        evaluated = self.milestones.steps[-1]  # only evaluations decide, so that a stop in between changes nothing
        if grokked is not None and evaluated >= grokked + self.stop_after:
            say(f">>> stopping: {split} has held for {evaluated - grokked} steps since step {grokked}")
            trainer.should_stop = True

    def gap(self) -> float | None:
        """Accuracy of the first held-out split minus the second: the ID–OOD gap at the last evaluation."""
        present = [split for split in self.milestones.held_out_splits if split in self.milestones.accuracy]
        if len(present) < 2:
            return None
        first, second = (self.milestones.accuracy[split][-1] for split in present[:2])
        return first - second

    def summary(self) -> dict[str, Any]:
        """Contribution to `summary.json`."""
        return {**self.milestones.summary(), "id_ood_gap": self.gap()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self.milestones.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.milestones.restore(state_dict)
