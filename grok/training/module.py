"""`GrokModule`: a `StepModel` trained in blocks of optimizer steps, and evaluated on named splits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchmetrics import MeanMetric

from grok.data import Batch, Block, RegimeDataModule, Split
from grok.data.blocks import Piece
from grok.errors import Problem, insist
from grok.models import LoopedTransformer, State, StepModel
from grok.models.steps import pick
from grok.task import Task
from grok.training.fast import FastSteps, plan
from grok.training.finite import Finite, gradient_norm, scaler_of
from grok.training.graph import plain_numbers, settings_of_the_plain_path
from grok.training.objectives import CrossEntropy, Objective
from grok.training.optimizers import parameter_groups
from grok.training.schedules import Warmup
from grok.training.sharding import is_sharded, shard, whole

__all__ = ["TOGETHER", "GrokModule", "Score"]

TOGETHER: ContextVar[Callable[[GrokModule, Block], bool] | None] = ContextVar("TOGETHER", default=None)
"""Does the optimizer steps of a block where modules are trained together (`grok.sweep.ensemble`); False: not done."""


@dataclass(frozen=True)
class Score:
    """Result on one split: exact match over all slots (None where nothing is right or wrong), loss, queries."""

    accuracy: float | None
    loss: float
    n: int


class GrokModule(L.LightningModule):
    """Trains a step model. One Lightning training step does a block of K optimizer steps.

    Everything that belongs to an optimizer step (clipping, the schedule, the moving average) happens at that step, so K
    changes nothing but speed: weights and averages are equal to the bit for every K.

    Args:
        task: sizes; the command line takes them from the data.
        net: makes the model from the task.
        optimizer: makes the optimizer from parameter groups.
        schedule: makes the learning-rate schedule, one step per optimizer step; None keeps the rate.
        objective: what is minimised; None means cross-entropy.
        decay: whether weight decay acts on matrices only (biases and norm gains do not decay), or on all weights.
        groups: weights, by name or by the name of a module, that the optimizer treats by options of their own, such as
            `{embedding: {lr: 1.0e-4}}`. With `betas: [0, 0]` AdamW is sign descent, p ← p - lr · (sign g + decay · p),
            by which He et al. 2026 train the prefix vector of their model:
            `{prefix: {lr: 1.0e-4, weight_decay: 1.0, betas: [0, 0], eps: 1.0e-18}}`.
        clip: largest global norm of the gradient; None does not clip.
        ema_decay: keep a moving average of the weights with this decay per optimizer step, and evaluate and save it.
        block: K, optimizer steps per Lightning training step.
        read_out: run the last block and the read-out at the `supervised` positions only, or `everywhere` as the
            reference code does; the loss and the gradients are the same.
        nonfinite: what to do when the loss or the gradient of a step is infinite or not a number: `stop` before any of
            it is saved, or `skip` the update and count it, which waits for the device at every step.
        fast: train by the fastest form of the same step on the device at hand, and say in one line what that is: on a
            CPU, prefixes that queries share are computed once; on CUDA, compiled blocks, one cast of the weights and
            one graph a step. Results are equal up to rounding, and checkpoints have the same keys.
        reduction: the training loss is the mean over the supervised `slots` of the batch, or over its `queries` of the
            mean over the slots of each (He et al. 2026). A loss of the model's own is a mean over queries.
        seed: fixes the initial weights. `grok` passes its `--seed_everything`.
        init_seed: fixes the initial weights alone; None takes it from `seed`.
    """

    def __init__(
        self,
        task: Task,
        net: Callable[[Task], StepModel] = LoopedTransformer,
        optimizer: Callable[[Any], Optimizer] = AdamW,
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        objective: Objective | None = None,
        decay: Literal["matrices", "all"] = "matrices",
        groups: dict[str, dict[str, Any]] | None = None,
        clip: float | None = 1.0,
        ema_decay: float | None = None,
        block: int = 50,
        read_out: Literal["supervised", "everywhere"] = "supervised",
        reduction: Literal["slots", "queries"] = "slots",
        nonfinite: Literal["stop", "skip"] = "stop",
        fast: bool = False,
        seed: int = 0,
        init_seed: int | None = None,
    ) -> None:
        super().__init__()
        insist(self.check(clip, ema_decay, block))
        self.automatic_optimization = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed if init_seed is None else init_seed)
            self.net = net(task)
        if task.answers_shown and not self.net.causal:
            insist([Problem("causal", False, "the inputs of this data show answers further on: use a causal model")])
        self.ema = None if ema_decay is None else copy.deepcopy(self.net).requires_grad_(False)
        self._average = None if ema_decay is None else get_ema_multi_avg_fn(ema_decay)  # type: ignore[no-untyped-call]
        self.objective = objective or CrossEntropy()
        if self.net.auxiliary and not self.objective.exact:
            fix = "a model that learns whether its answers are right needs such answers; for values, use net.halt=false"
            insist([Problem("objective", type(self.objective).__name__, fix)])
        self.make_optimizer, self.make_schedule, self.decay = optimizer, schedule, decay
        self.groups = groups or {}
        parameter_groups(self.net, decay, self.groups)  # refuses a name that no weight has
        self.clip, self.block, self.read_out, self.reduction = clip, block, read_out, reduction
        self.fast, self._steps = fast, None  # type: tuple[bool, FastSteps | None]
        self.finite = Finite(skip=nonfinite == "skip")
        self.metrics = nn.ModuleList()  # by position: a split may be called `train`, a name nn.Module has taken
        self.scores: dict[str, Score] = {}
        self._loss_sum: Tensor | None = None
        self._loss_steps = 0

    @staticmethod
    def check(clip: float | None = 1.0, ema_decay: float | None = None, block: int = 50) -> list[Problem]:
        """Problems with the arguments of the constructor."""
        problems = []
        if clip is not None and not clip > 0:
            problems.append(Problem("clip", clip, "use a positive norm, or null not to clip"))
        if ema_decay is not None and not 0 < ema_decay < 1:
            problems.append(Problem("ema_decay", ema_decay, "use a decay between 0 and 1, or null for no average"))
        if block < 1:
            problems.append(Problem("block", block, "use 1 or more optimizer steps"))
        return problems

    # ------------------------------------------------------------------ training

    def configure_model(self) -> None:
        """Spread the weights over processes where the strategy has a mesh of devices (`FullySharded`)."""
        if self.device_mesh is not None and not is_sharded(self.net):
            for net in (self.net, self.ema):
                if net is not None:
                    shard(net, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        """The optimizer over decaying and non-decaying weights, and its schedule, counted in optimizer steps."""
        optimizer = self.make_optimizer(parameter_groups(self.net, self.decay, self.groups))
        insist([*self._check_unscaling(optimizer), *self._check_groups(optimizer)])
        if self.make_schedule is None:
            return optimizer
        schedule = self.make_schedule(optimizer)
        if isinstance(schedule, Warmup) and schedule.decay_to is None:
            schedule.decay_to = self.trainer.max_steps
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _check_unscaling(self, optimizer: Optimizer) -> list[Problem]:
        """A fused optimizer unscales fp16 gradients inside its step: clipping would see them scaled."""
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if self.clip is None or not fused or scaler_of(self.trainer) is None:
            return []
        fix = "a fused optimizer cannot be clipped under 16-mixed: use fused=false, bf16-mixed, or null not to clip"
        return [Problem("clip", self.clip, fix)]

    def _check_groups(self, optimizer: Optimizer) -> list[Problem]:
        """An optimizer keeps options that it does not know, and ignores them."""
        has = ", ".join(optimizer.defaults)
        return [
            Problem(f"groups.{key}.{name}", value, f"{type(optimizer).__name__} has no such option; it has {has}")
            for key, options in self.groups.items()
            for name, value in options.items()
            if name not in optimizer.defaults
        ]

    def loss(self, batch: Batch, world: int = 1, net: Callable[..., Tensor] | None = None) -> Tensor:
        """Loss of this rank's share, scaled so that the mean over `world` ranks is the mean over the global batch.

        Args:
            batch: this rank's share.
            world: number of ranks.
            net: another form of `self.net`, with the same answers; a `StepModel` if the model is `auxiliary`.
        """
        queries = batch.queries
        states: list[State] = []
        net = self.net if net is None else net
        if self.net.auxiliary:
            net = _noting(cast(StepModel, net), states)
        outputs = self.outputs(net, queries.inputs, queries.at, queries.position_ids)
        losses = self.objective(outputs, queries.targets) * queries.mask
        of_query = world / (len(queries) if batch.size is None else batch.size)
        if self.reduction == "queries":
            loss = (losses.sum(1) / queries.mask.sum(1).clamp(min=1)).sum() * of_query
        else:
            loss = losses.sum() * (world / batch.supervised)
        if states:
            loss = loss + self.net.auxiliary_loss(states[0], self._right(outputs, queries)).sum() * of_query
        return cast(Tensor, loss)

    def _right(self, outputs: Tensor, queries: Split) -> Tensor:
        """`[B]` bool, whether all answers of a query are right."""
        return (self.objective.correct(outputs, queries.targets, queries.codes) | ~queries.mask).all(1)

    def outputs(
        self, net: Callable[..., Tensor], inputs: Tensor, at: Tensor, position_ids: Tensor | None = None
    ) -> Tensor:
        """What `net`, which has the architecture of `self.net`, answers at positions `at` `[B, A]`: `[B, A, V]`."""
        if inputs.is_floating_point():
            inputs = inputs.to(next(self.net.parameters()).dtype)
        if self.read_out == "everywhere":
            return pick(net(inputs, position_ids=position_ids), at)
        return net(inputs, at=at, position_ids=position_ids)

    def training_step(self, block: Block, _: int) -> None:
        """K optimizer steps, during which nothing waits for the device or logs; then a look whether all were finite.

        Raises:
            NotFinite: naming the first that was not.
        """
        together = TOGETHER.get()
        if together is None or not together(self, block):
            for batch in block:
                if self._steps is not None:
                    self._steps.step(batch)
                else:
                    self.learn(self.loss(batch, self.trainer.world_size))
        self.finite.insist(self.trainer)

    def on_train_start(self) -> None:
        """Choose the form of the training step, and say which; members of an ensemble have one of their own."""
        self._steps = None
        if not self.fast:
            return
        if TOGETHER.get() is not None:
            self.print("fast: the plain path, as members of an ensemble are computed together")
            return
        trainer = self.trainer
        batch = self._data.generated.train.to(self.device).batch(0, trainer.global_rank, trainer.world_size)
        chosen = plan(self, batch)
        self.print(chosen.line)
        self._steps = FastSteps(self, chosen, batch)

    def learn(self, loss: Tensor) -> None:
        """Backward pass and update."""
        self.manual_backward(loss)
        self.update(loss.detach())

    def update(self, loss: Tensor, keep_memory: bool = False) -> None:
        """What follows a backward pass, whose loss is noted: optimizer, schedule and moving average.

        Args:
            loss: of this optimizer step.
            keep_memory: zero the gradients in place; they are slices of those of an ensemble.
        """
        optimizer = cast(Any, self.optimizers())
        skipped = self.finite.leaves_out(loss, self.net, self.trainer)
        if skipped:  # only counted: Lightning's wrapper counts steps around a real one
            optimizer._on_before_step()
            optimizer._on_after_step()
        else:
            optimizer.step()
            self.average()
        optimizer.zero_grad(set_to_none=not keep_memory)
        self.advance(loss, skipped)

    def average(self) -> None:
        """Let the moving average follow the weights."""
        if self.ema is not None and self._average is not None:
            self._average(list(self.ema.parameters()), list(self.net.parameters()), 0)

    def advance(self, loss: Tensor, skipped: bool = False) -> None:
        """Note the loss of an optimizer step that has been done, and let the schedule set the rate of the next."""
        schedule = cast(LRScheduler | None, self.lr_schedulers())
        if schedule is not None:
            schedule.step()
        if skipped:
            return
        self.finite.note(loss)
        self._loss_sum = loss if self._loss_sum is None else self._loss_sum + loss
        self._loss_steps += 1

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip here: under fp16 the gradients have just been unscaled."""
        norm = None if self.clip is None else nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        if self.finite.looks_at_gradients(self.trainer):
            self.finite.norm = gradient_norm(self.net) if norm is None else whole(norm)

    def pop_training_loss(self) -> float | None:
        """Mean training loss since the last call, over all processes, which all call this; waits for the device."""
        total = self._loss_sum
        if total is None:
            return None
        if self.trainer.world_size > 1:
            total = cast(Tensor, self.trainer.strategy.reduce(total.clone(), reduce_op="mean"))
        mean = float(total) / self._loss_steps
        self._loss_sum, self._loss_steps = None, 0
        return mean

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the training loss of each process since the last evaluation, and weights without slack."""
        sums = None if self._loss_sum is None else cast(Tensor, self.all_gather(self._loss_sum)).reshape(-1)
        checkpoint["training_loss"] = {"sums": sums, "steps": self._loss_steps}
        checkpoint["finite"] = self.finite.state()
        for state, optimizer in zip(checkpoint["optimizer_states"], self.trainer.optimizers, strict=True):
            settings_of_the_plain_path(state.get("param_groups", ()), optimizer.defaults)
        plain_numbers(checkpoint["lr_schedulers"])
        # `torch.save` writes the whole memory that a slice is of: of an ensemble, the weights of all members.
        for name, weight in checkpoint["state_dict"].items():
            if weight.untyped_storage().nbytes() > weight.nbytes:
                checkpoint["state_dict"][name] = weight.clone()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `on_save_checkpoint`.

        Lightning loads weights before it converts the module to `--trainer.precision`: float64 would be cut to float32.
        """
        kinds = {weight.dtype for weight in checkpoint["state_dict"].values() if weight.is_floating_point()}
        for net in (self.net, self.ema) if len(kinds) == 1 else ():
            if net is not None:  # not the metrics: they count as they do in a run that was not resumed
                net.to(next(iter(kinds)))
        kept = checkpoint.get("training_loss", {"sums": None, "steps": 0})
        sums, self._loss_steps = kept["sums"], kept["steps"]
        if "finite" in checkpoint:
            self.finite.restore(checkpoint["finite"])
        if sums is not None:
            self._loss_sum = sums[self.global_rank] if len(sums) == self.trainer.world_size else sums.mean()

    # ------------------------------------------------------------------ evaluation

    @property
    def evaluated(self) -> StepModel:
        """The model that is evaluated and saved for analysis: the moving average if there is one."""
        return self.net if self.ema is None else self.ema

    @property
    def split_names(self) -> list[str]:
        """Names of the evaluation splits, in the order of the data loaders."""
        return list(self._data.splits)

    @property
    def _data(self) -> RegimeDataModule:
        return cast(RegimeDataModule, cast(Any, self.trainer).datamodule)

    def setup(self, stage: str) -> None:
        """Make the metrics of each split."""
        if stage != "predict":
            # NaN must show up as NaN, not be left out of the mean
            self.metrics = nn.ModuleList(
                nn.ModuleDict({kind: MeanMetric(nan_strategy="disable") for kind in self._kinds(split)})
                for split in self._data.splits.values()
            )

    def _kinds(self, split: Split) -> tuple[str, ...]:
        return ("accuracy", "loss") if self.objective.exact or split.codes is not None else ("loss",)

    def validation_step(self, piece: Piece, _: int, dataloader_idx: int = 0) -> None:
        """Count the right answers of one piece of one split."""
        queries = piece.queries
        beyond = not len(queries)  # the end of a small split, of which another process still has some
        if beyond and self.device_mesh is None:
            return
        if beyond:  # that process needs the weights that this one holds: compute something
            queries = self._data.splits[self.split_names[dataloader_idx]].take(slice(0, 1)).to(self.device)
        outputs = self.outputs(self.evaluated, queries.inputs, queries.at, queries.position_ids)
        if beyond:
            return
        metrics = cast(Mapping[str, MeanMetric], self.metrics[dataloader_idx])
        metrics["loss"].update(self.objective(outputs, queries.targets)[queries.mask])
        if "accuracy" in metrics:
            metrics["accuracy"].update(self._right(outputs, queries).float())

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Gather `scores` over all processes and log them as `accuracy/SPLIT` and `loss/SPLIT`."""
        self.scores = {name: self._score(index, name) for index, name in enumerate(self.split_names)}
        values = {f"loss/{name}": score.loss for name, score in self.scores.items()}
        values |= {
            f"accuracy/{name}": score.accuracy for name, score in self.scores.items() if score.accuracy is not None
        }
        # The entry `step` makes optimizer steps, not blocks, the loggers' x axis.
        values["step"] = float(self.trainer.global_step)
        self.log_dict(values, sync_dist=torch.distributed.is_available() and torch.distributed.is_initialized())

    on_test_epoch_end = on_validation_epoch_end

    def _score(self, index: int, name: str) -> Score:
        metrics = cast(Mapping[str, MeanMetric], self.metrics[index])
        values = {kind: float(metric.compute()) for kind, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return Score(values.get("accuracy"), values["loss"], len(self._data.splits[name]))

    def predict_step(self, piece: Piece, _: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Answers `[B, A]`, or vectors `[B, A, V]`, beside inputs, targets, mask and which queries are `correct`."""
        queries = piece.queries
        outputs = self.outputs(self.evaluated, queries.inputs, queries.at, queries.position_ids)
        answer = outputs.argmax(-1) if not queries.targets.is_floating_point() else outputs.view_as(queries.targets)
        known = {"inputs": queries.inputs, "answer": answer, "targets": queries.targets, "mask": queries.mask}
        return known | ({"correct": self._right(outputs, queries)} if "accuracy" in self._kinds(queries) else {})


def _noting(net: StepModel, states: list[State]) -> Callable[..., Tensor]:
    """`net`, which appends its last state to `states`."""

    def noted(*arguments: Any, **options: Any) -> Tensor:
        outputs, state = net.forward_with_state(*arguments, **options)
        states.append(state)
        return outputs

    return noted
