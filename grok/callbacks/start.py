"""`StartFrom`: training that begins with the weights of another run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L

from grok.callbacks.checkpoints import load_series, load_weights
from grok.callbacks.console import say
from grok.data.encoding import NextToken
from grok.errors import BadInput, Problem, insist
from grok.milestones import MILESTONES, series_step
from grok.reading import read_yaml
from grok.records import RunRecord
from grok.training import GrokModule

__all__ = ["GRAPH_KEYS", "StartFrom", "insist_on_same_task"]

GRAPH_KEYS = (
    "entities", "relations", "out_degree", "ood", "iid", "graph_seed", "encoding",  # graph and vocabulary
    "path", "operation", "modulus",
    "regime", "k", "h1ratio", "h1k", "h2ratio", "h2k", "phi", "lazy",  # what of the graph was in training
)  # fmt: skip
"""Keys of `data` that say which tokens mean what, and which facts a run has seen: what is learnt on top of it is about
the same graph, and is measured against the same training table."""

EXPOSURE_KEYS = ("k", "h1ratio", "h1k", "h2ratio", "h2k")
"""Those of them that only say how much is exposed."""

_FREE_OF_NET = ("dropout", "init_std", "init_depth")  # these change training, not the function of the weights


class StartFrom(L.Callback):
    """Starts training from the evaluated weights that another run has saved in its series, with a fresh optimizer.

    Only the weights come from there (those of the moving average if it had one): optimizer, schedule, steps and data
    order begin anew. A run that is resumed goes on from its own checkpoint and does not need the other any more.

    Args:
        run: the other run's directory, which must be finished; null starts from random weights.
        step: a step of its checkpoint series, or a milestone of it: `before_memorised` (the saved step nearest to half
            the memorised step), `memorised`, `bridge` (of held-out queries: readable in a state that decides the
            answer), `grokked` (the first held-out split): the first saved step at or after it; or `last`.
    """

    def __init__(self, run: str | None = None, step: int | str = "last") -> None:
        insist(self.check(run, step))
        self.run, self.step = run, step
        self._path: Path | None = None
        self._told: dict[str, Any] = {}

    @staticmethod
    def check(run: str | None = None, step: int | str = "last") -> list[Problem]:
        """Problems with the arguments of the constructor."""
        if step in MILESTONES or (isinstance(step, int) and step >= 0):
            return []
        return [Problem("step", step, f"use a step of the series, or {', '.join(MILESTONES)}")]

    def prepare(
        self, module: GrokModule, config: Mapping[str, Any] | None = None, here: str | Path = "this run"
    ) -> None:
        """Find the weights and try whether they fit, before anything is written.

        Args:
            module: what is to be trained.
            config: its complete configuration, to be compared with that of the other run.
            here: its run directory.

        Raises:
            BadInput: if the other run is not finished, has not saved that step, never got there, or is of another
                graph or model.
        """
        if self.run is None:
            return
        record = RunRecord(self.run)
        if not record.is_finished():
            there = "not finished" if record.directory.is_dir() else "not there"
            insist([Problem("start.run", self.run, f"{there}; a run starts from the weights of a finished one")])
        summary, series = record.summary() or {}, load_series(self.run)
        try:
            step = series_step(self.step, list(series), summary, record.rows() if self.step == "bridge" else ())
        except BadInput as error:
            raise BadInput(f"start.step={self.step!r} of start.run={self.run!r}: {error}") from None
        self._path = series[step]
        if config is not None:
            path = Path(self.run) / "config.yaml"
            insist_on_same_task(_read(path), config, path, here)
        load_weights(module.net, self._path)
        milestone = None if isinstance(self.step, int) else self.step
        self._told = {"run": self.run, "step": step, "milestone": milestone, "flops": _flops(summary, step)}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the weights in, unless training goes on from a checkpoint of its own."""
        if self.run is None or trainer.ckpt_path is not None:
            return
        module = cast(GrokModule, pl_module)
        if self._path is None:
            self.prepare(module)
        for net in (module.net, module.ema):  # now they have the precision that trains
            if net is not None:
                load_weights(net, cast(Path, self._path))
        milestone = f" ({self._told['milestone']})" if self._told["milestone"] else ""
        say(f"starting from {self.run} at step {self._told['step']:,}{milestone}")

    def summary(self) -> dict[str, Any]:
        """Contribution to `summary.json`: from where, and the FLOPs that were spent up to there."""
        return {"start": self._told} if self._told else {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the summary, so that a resumed run does not need the other one."""
        return {"told": self._told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._told = state_dict["told"]


def _flops(summary: Mapping[str, Any], step: int) -> int | None:
    """FLOPs of the other run up to `step`, with those of the run that it started from itself."""
    flops, steps = summary.get("flops"), summary.get("step")
    if flops is None or not steps:
        return None
    before = (summary.get("start") or {}).get("flops") or 0
    return int(before + flops * step / steps)


def _read(path: Path) -> Any:
    try:
        return read_yaml(path)
    except (OSError, BadInput):
        return None


def insist_on_same_task(source: Any, config: Mapping[str, Any], there: str | Path, here: str | Path) -> None:
    """Refuse weights that mean something else: of another vocabulary, graph, training table or architecture.

    Args:
        source: the complete configuration of the run that the weights come from.
        config: that of the run that is to start.
        there: what to call the one in messages.
        here: what to call the other.

    Raises:
        BadInput: naming each key, both values and both runs.
    """
    try:
        theirs, mine = dict(_meaning(source)), dict(_meaning(config))
    except (KeyError, TypeError, AttributeError):
        raise BadInput(f"start.run: {there} is not there, or not the configuration of a run") from None
    fix = "weights mean the same only for the same graph, vocabulary and architecture"
    missing = {key for key in mine.keys() ^ theirs.keys() if key.startswith("data.")}
    if theirs.get("data.regime") != mine.get("data.regime"):
        missing -= {f"data.{key}" for key in EXPOSURE_KEYS}  # of natural they are left out
    keys = dict.fromkeys([*mine, *theirs])
    differ = [key for key in keys if key in missing or (key in mine and key in theirs and mine[key] != theirs[key])]
    if differ:
        told = (_told(theirs, key, there) + ", " + _told(mine, key, here) for key in differ)
        raise BadInput(*(f"start.run: {key} is {one}; {fix}" for key, one in zip(differ, told, strict=True)))


def _told(meaning: Mapping[str, Any], key: str, where: str | Path) -> str:
    return f"{meaning[key]!r} in {where}" if key in meaning else f"nothing in {where}"


def _meaning(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What must be the same, by key, with what is left to a default written out."""
    data, net = config["data"].get("init_args") or {}, config["model"]["net"]
    if "entities" in data:
        data = {"graph_seed": None, "encoding": None, "lazy": False, "regime": "natural", **data}
        if data["regime"] == "natural":  # as two-hop composition: nothing is exposed
            data = {key: value for key, value in data.items() if key not in EXPOSURE_KEYS}
    seed = data.get("graph_seed")
    for key in GRAPH_KEYS:
        if key == "graph_seed" and key in data:
            yield "data.graph_seed", config["seed_everything"] if seed is None else seed
        elif key == "encoding" and key in data:
            yield "data.encoding", _encoding(data[key])
        elif key in data:
            yield f"data.{key}", data[key]
    yield "model.net", net["class_path"]
    yield from ((f"model.net.{k}", v) for k, v in (net.get("init_args") or {}).items() if k not in _FREE_OF_NET)


def _encoding(given: Mapping[str, Any] | None) -> dict[str, Any]:
    given = given or {"class_path": "grok.data.NextToken"}
    name = given["class_path"].rpartition(".")[2]
    usual = inspect.signature(NextToken).parameters.values() if name == NextToken.__name__ else ()
    return {"class": name, **{one.name: one.default for one in usual}, **(given.get("init_args") or {})}
