"""`RegimeDataModule`: what every data regime is to the trainer, the command line and the analysis."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import lightning as L
from torch import Tensor

from grok.data.attribute_values import AttributeValues
from grok.data.blocks import Blocks, Pieces
from grok.data.facts import AtomicFacts
from grok.data.split import Split
from grok.data.stream import Stream
from grok.errors import BadInput, Problem, insist
from grok.phases import Phase
from grok.task import Task

__all__ = ["Generated", "RegimeDataModule"]

LARGEST_BATCH = 2**24


@dataclass(frozen=True)
class Generated:
    """What a regime makes: the training stream, the named splits it is evaluated on, and the knowledge behind them."""

    train: Stream
    evaluation: Mapping[str, Split]
    facts: AtomicFacts | AttributeValues | None = None


class RegimeDataModule(L.LightningDataModule):
    """A data regime. A subclass gives `task`, `generate` and names of its own splits, and nothing else.

    Data lie on the device that trains, and batch i is a pure function of (seed, i): there are no workers, nothing is
    collated, and a resumed run needs no sampler state.

    Args:
        batch: queries per optimizer step, over all processes together.
        seed: fixes the data and their order. `grok` passes its `--seed_everything`.
        order_seed: fixes the order alone; None takes it from `seed`.
        evaluation_batch: queries per forward pass in evaluation.
    """

    memorised_split: str | None = None
    """The split that tells when the training data are memorised; None where nothing can be."""

    held_out_splits: tuple[str, ...] = ()
    """The splits that tell when the model has grokked, most important first."""

    phases: tuple[Phase, ...] = ()
    """The phases of training that the regime is known for, in order, see `grok.phases`; none for most."""

    remedy: str = "use a larger data set"
    """What to change when a split comes out empty."""

    def __init__(
        self, batch: int = 512, seed: int = 0, order_seed: int | None = None, evaluation_batch: int = 4096
    ) -> None:
        super().__init__()
        insist(RegimeDataModule.check_common(batch=batch, evaluation_batch=evaluation_batch))
        self.batch, self.seed, self.evaluation_batch = batch, seed, evaluation_batch
        self.order_seed = seed if order_seed is None else order_seed
        self._generated: Generated | None = None

    @staticmethod
    def check_common(batch: int = 512, evaluation_batch: int = 4096, **_: Any) -> list[Problem]:
        """Problems with the arguments that all regimes share."""
        problems = [
            Problem(key, value, "give a number of queries, 1 or more")
            for key, value in (("batch", batch), ("evaluation_batch", evaluation_batch))
            if value < 1
        ]
        if batch > LARGEST_BATCH:
            problems.append(Problem("batch", batch, f"use at most {LARGEST_BATCH:,} queries"))
        return problems

    @property
    @abstractmethod
    def task(self) -> Task:
        """Sizes that a model needs, known before anything is generated."""

    @abstractmethod
    def generate(self) -> Generated:
        """Make the training stream and the evaluation splits, on the CPU."""

    @property
    def main_split(self) -> str:
        """The split that stands for all: the first held-out one that is not empty, or else the first."""
        return next((name for name in self.held_out_splits if name in self.splits), next(iter(self.splits)))

    def token_name(self, token: int) -> str:
        """How a token is written at the edges (predictions, plots)."""
        return str(token)

    def floor(self, split: str) -> float | None:
        """Accuracy that chance gives on a split: one over the number of possible answers; None if not known."""
        labels = self.splits[split].labels
        return None if labels is None else 1 / len(labels)

    def baselines(self, split: str) -> dict[str, float]:
        """Accuracies on a split, by name, of rules that need no model; none are known for most regimes."""
        return {}

    def groups(self, split: Split) -> Mapping[str, Tensor]:
        """Named groups of positions for every query and slot of a split, `[N, A, T]` bool: where a circuit should look
        from where the slot is read (the fact, the source of a copy), and where not; none for most regimes.
        """
        return {}

    def sizes(self) -> dict[str, float]:
        """Numbers that the data turned out to have, by name (`effective_phi`), for `summary.json`; none for most."""
        return {}

    def setup(self, stage: str | None = None) -> None:
        """Generate once; Lightning calls this for every stage.

        Raises:
            BadInput: if an evaluation split that the regime promised is empty.
        """
        if self._generated is None:
            generated = self.generate()
            empty = [name for name, split in generated.evaluation.items() if len(split) == 0]
            watched = {self.memorised_split, *self.held_out_splits[:1]}
            if watched & set(empty):
                names = ", ".join(sorted(str(name) for name in watched & set(empty)))
                raise BadInput(f"{names}: no query in this split at these sizes; {self.remedy}")
            evaluation = {name: split for name, split in generated.evaluation.items() if len(split)}
            self._generated = replace(generated, evaluation=evaluation)

    @property
    def generated(self) -> Generated:
        """Training stream and evaluation splits, generated on first use."""
        self.setup()
        assert self._generated is not None
        return self._generated

    @property
    def splits(self) -> Mapping[str, Split]:
        """The non-empty evaluation splits by name, on the CPU."""
        return self.generated.evaluation

    def train_dataloader(self) -> Blocks:
        """Blocks of optimizer steps from wherever the trainer stands, cut at every step where a callback acts."""
        trainer = self._trainer
        return Blocks(
            self.generated.train.to(trainer.strategy.root_device),
            start=trainer.global_step,
            stop=trainer.max_steps,
            length=getattr(trainer.lightning_module, "block", 1),
            due=[due for callback in cast(Any, trainer).callbacks for due in _due(callback)],
            rank=trainer.global_rank,
            world=trainer.world_size,
        )

    def val_dataloader(self) -> list[Pieces]:
        """For every evaluation split, in the order of `splits`, this rank's share in pieces, on the device."""
        trainer = self._trainer
        device, share = trainer.strategy.root_device, (trainer.global_rank, trainer.world_size)
        return [
            Pieces(split.without_truth().to(device), self.evaluation_batch, *share) for split in self.splits.values()
        ]

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> list[Pieces]:
        """Every split, whole: process 0 writes all answers."""
        device = self._trainer.strategy.root_device
        return [Pieces(split.without_truth().to(device), self.evaluation_batch) for split in self.splits.values()]

    @property
    def _trainer(self) -> L.Trainer:
        if self.trainer is None:
            raise RuntimeError("the data module has no trainer yet; use `splits` and `generated` without one")
        return self.trainer

    def tokens(self, row: Tensor) -> list[str]:
        """A row of tokens, written."""
        return [self.token_name(int(token)) for token in row]


def _due(callback: Any) -> list[Callable[[int], int]]:
    """When a callback must act: its `schedule`, or the step interval of Lightning's ModelCheckpoint.

    ModelCheckpoint tests `global_step % n == 0` at block ends only; without this it would save nothing, silently.
    """
    schedule = getattr(callback, "schedule", None)
    if schedule is not None:
        return [schedule.following]
    every = getattr(callback, "_every_n_train_steps", 0)
    return [lambda step: (step // every + 1) * every] if every else []
