"""`GrokCLI`: LightningCLI over `GrokModule` and any regime, with the run directory and the callbacks of every run."""

from __future__ import annotations

import math
import os
import re
import sys
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import DefaultHelpFormatter
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.fabric.plugins.io import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer import Trainer

from grok import callbacks as watch
from grok.callbacks.console import patient, say
from grok.callbacks.last import DurableCheckpoints, good_checkpoint, saved_checkpoints
from grok.cluster import cluster_environment
from grok.configuration import (
    chosen_classes,
    config_files,
    config_problems,
    differences,
    explain,
    insist_on_mapping,
    insist_on_one_seed,
    of_the_outcome,
    problems_of_blocks,
    problems_of_names,
    with_run,
)
from grok.data import RegimeDataModule
from grok.errors import BadInput, NotFinite, Problem, insist
from grok.files import sha256, write_atomically, writer
from grok.help import HELP_TEXT
from grok.loading import insist_on_resumable, insist_on_whole, reading
from grok.provenance import example, provenance
from grok.records import RunRecord
from grok.report.closing import closing_lines, score_table
from grok.stopping import AGAIN
from grok.training import GrokModule, parameter_groups

__all__ = ["CALLBACKS", "GrokCLI", "run_lightning"]

_PLAIN_DATA = {"weights_only": True}  # a checkpoint that would execute code is not loaded
_NOT_IN_CONFIG = ("config", "run_dir", "fresh", "ckpt_path", "weights_only")


CALLBACKS: Mapping[str, type[Callback]] = {
    "start": watch.StartFrom,  # before all that look at the weights of step 0
    "evaluation": watch.Evaluation,
    "progress": watch.Progress,
    "monitor": watch.GrokkingMonitor,
    "cost": watch.CostMeter,
    "series": watch.CheckpointSeries,
    "lens": watch.LogitLens,
    "found": watch.Found,
    "tracing": watch.CausalTracing,
    "semantic": watch.SemanticPatching,
    "cosine": watch.CosineLens,
    "probes": watch.Probes,
    "attention": watch.AttentionMaps,
    "faithfulness": watch.Faithfulness,
    "fourier": watch.Fourier,
    "loops": watch.LoopCounts,
    "groups": watch.AttentionGroups,
    "measures": watch.RegimeMeasures,
    "figures": watch.Figures,  # before the record, which marks the run finished last of all
    "record": watch.RunRecorder,
    "last": watch.LastCheckpoint,
    "predictions": watch.PredictionWriter,
}
"""The callbacks of every run and the configuration group of each, in the order in which they act."""


class HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """jsonargparse's help, with the lines of a description kept as they are."""


class SaveConfig(SaveConfigCallback):
    """Writes `config.yaml`, complete and runnable again, into the run directory when training starts."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write it, unless it is there; by now `RunRecorder` holds the directory."""
        if stage == "fit" and trainer.is_global_zero:
            path, text = Path(trainer.default_root_dir) / "config.yaml", dump_config(self.parser, self.config)
            if RunRecord(path.parent).has_begun():
                _insist_on_same(
                    path, text, self.parser
                )  # another process may have been here since that was found first
            else:
                write_atomically(path, text)


# Defaults of Lightning's own callbacks hold enumerations, which the dumper does not know; they parse from their value.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


def dump_config(parser: LightningArgumentParser, config: Any) -> str:
    """The configuration as YAML, without what is about one invocation only."""
    config = config.clone()
    for key in _NOT_IN_CONFIG:
        config.pop(key, None)
    text: str = parser.dump(config, skip_none=False)
    return text


class GrokCLI(LightningCLI):
    """LightningCLI over `GrokModule` and any `RegimeDataModule`, with the run directory and the watching callbacks."""

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed, an integer."""
        parser.add_argument(
            "--seed_everything", type=int, default=0, help="Fixes the data, their order and the initial weights."
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run directory, the callbacks of every run, and what the model takes from the data."""
        parser.usage = "%(prog)s --config CONFIG [--KEY VALUE …]"  # all keys follow, with their meaning
        parser.add_argument(
            "--run_dir", type=str | None, default=None,
            help="Where the run is kept; by default runs/EXPERIMENT/REGIME/seed_N.",
        )  # fmt: skip
        parser.add_argument(
            "--experiment", type=str | None, default=None, help="Name of the experiment; by default the config file's."
        )
        parser.add_argument("--fresh", action="store_true", help="Start a new run beside one that is there already.")
        for name, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, name)
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("data", "model.task", compute_fn=_task, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args` alone, whatever started this process; a mistake is told by its key."""
        self.argv: list[str] = list(args)
        try:
            self.config = self._parse(parser, args)
        except ArgumentError as error:
            chosen = self._subcommand_parsers.get(args[0] if args else "")
            known = [option.removeprefix("--") for option in chosen._option_string_actions] if chosen else []
            raise BadInput(explain(str(error), known)) from error
        insist_on_one_seed(args, self.config[self.config.subcommand].get("config") or [])
        seed = self.config[self.config.subcommand].seed_everything
        if not 0 <= seed < 2**32:
            insist([Problem("seed_everything", seed, "use an integer from 0 to 4294967295")])

    def _parse(self, parser: LightningArgumentParser, args: Sequence[str]) -> Any:
        """Parse twice where classes are chosen in the place of default ones, whose defaults the parser would keep."""
        plain = [word for word in args if not word.startswith("--print_config")]
        half = plain != list(args)  # of a configuration can be printed
        config = parser.parse_args(plain, _skip_validation=half)
        subparser = self._subcommand_parsers[config.subcommand]
        chosen = chosen_classes(subparser, config[config.subcommand], "model")
        if not (chosen or half):
            return config
        usual = {key: subparser.get_default(key) for key in chosen}
        subparser.set_defaults(chosen)
        try:
            return parser.parse_args(args)
        finally:
            subparser.set_defaults(usual)  # a sweep parses all its runs with one parser

    def _parse_ckpt_path(self) -> None:
        """Nothing: LightningCLI would let hyper-parameters in a checkpoint override what the user wrote."""

    @property
    def options(self) -> Any:
        """The configuration of the chosen subcommand."""
        return self.config[str(self.subcommand)]

    def before_instantiate_classes(self) -> None:
        """Check everything that can be checked, and choose the directory, before anything is made."""
        problems = config_problems(self.options, {**CALLBACKS, "model": GrokModule, "trainer": Trainer})
        steps = self.options.trainer.max_steps
        if self.subcommand == "fit" and steps is not None and steps < 1:
            problems.append(Problem("trainer.max_steps", steps, "give the number of optimizer steps"))
        if self.options.trainer.default_root_dir is not None:
            root = self.options.trainer.default_root_dir
            problems.append(Problem("trainer.default_root_dir", str(root), "use --run_dir"))
        problems += problems_of_blocks(self.options.trainer)
        insist(problems)
        files = self.options.get("config") or []
        self.options.experiment = self.options.experiment or (Path(str(files[-1])).stem if files else "run")
        self.run_dir = Path(self.options.run_dir or self._default_run_dir())
        insist(problems_of_names(self.options))
        if self.subcommand == "fit":
            self._open_run_dir()
        self.choose_checkpoint()

    def _default_run_dir(self) -> Path:
        regime = str(self.options.data.class_path).rpartition(".")[2]
        return Path("runs") / str(self.options.experiment) / regime / f"seed_{self.options.seed_everything}"

    def _open_run_dir(self) -> None:
        """Resume what is there, refuse what is another run's, or step aside with `--fresh`."""
        if self.options.fresh:
            base, number = self.run_dir, 2
            while _holds_files(self.run_dir):
                self.run_dir, number = base.with_name(f"{base.name}-{number}"), number + 1
        parent = next(path for path in (self.run_dir, *self.run_dir.absolute().parents) if path.exists())
        finished = RunRecord(self.run_dir).is_finished()  # then nothing will be written
        if not parent.is_dir() or not (finished or os.access(parent, os.W_OK)):
            raise BadInput(f"run_dir={str(self.run_dir)!r}: {parent} is not a directory that can be written to")
        saved = self.run_dir / "config.yaml"
        if _holds_files(self.run_dir) and not saved.exists():
            raise BadInput(f"run_dir={str(self.run_dir)!r}: holds other files and no run; choose another directory")
        if RunRecord(self.run_dir).has_begun():  # otherwise a mistake was found on the way, or it was killed at once
            parser = self._parser(self.subcommand)
            _insist_on_same(saved, dump_config(parser, self.options), parser)

    def choose_checkpoint(self) -> None:
        """Never evaluate random weights, and name a checkpoint that cannot be one before anything is made."""
        if self.subcommand != "fit" and self.options.ckpt_path is None:
            last, damaged = good_checkpoint(self.run_dir)
            if last is None:
                missing = self.run_dir / "last.ckpt"
                raise BadInput(f"{missing}: no trained weights there; give a run directory, or --ckpt_path")
            if damaged:  # older weights are for going on, not for reporting
                raise BadInput(*damaged, f"--ckpt_path {last} is the last good one")
            self.options.ckpt_path = str(last)
            return
        chosen = self.options.ckpt_path
        if chosen is not None and Path(chosen).suffix == ".safetensors":
            fix = "weights of a series, which `grok trace RUN` examines; to test or to go on, give RUN/last.ckpt"
            insist([Problem("ckpt_path", str(chosen), fix)])
        if chosen is not None and not (Path(chosen).is_file() and Path(chosen).suffix == ".ckpt"):
            insist([Problem("ckpt_path", str(chosen), "give an existing .ckpt file, such as RUN/last.ckpt")])
        if chosen is not None:
            insist_on_whole(Path(chosen))

    def after_instantiate_classes(self) -> None:
        """Make what training will make: bad data and bad settings must be found before anything is written."""
        with patient("making the data"):
            self.datamodule.setup()
        values = self.datamodule.generated.train.batch(0).queries.targets.is_floating_point()
        if values == self.model.objective.exact:
            wanted = "values: use grok.training.SquaredError" if values else "tokens: use grok.training.CrossEntropy"
            insist([Problem("model.objective", type(self.model.objective).__name__, f"the answers are {wanted}")])
        try:
            optimizer = self.model.make_optimizer(parameter_groups(self.model.net, self.model.decay))
        except (TypeError, ValueError) as error:
            raise BadInput(f"model.optimizer: {error}") from error
        if math.isinf(rate := optimizer.param_groups[0].get("lr", 0.0)):
            insist([Problem("model.optimizer.lr", rate, "use a finite learning rate")])
        finished = self.subcommand == "fit" and RunRecord(self.run_dir).is_finished()
        if self.subcommand == "fit" and not finished and self.options.ckpt_path is not None:
            insist_on_resumable(Path(self.options.ckpt_path), self.model)
        for callback in cast(Any, self.trainer).callbacks:
            if isinstance(callback, watch.StartFrom) and self.subcommand == "fit" and not finished:
                self._prepare_start(callback)
            if isinstance(callback, watch.CircuitCallback) and self.subcommand != "predict" and not finished:
                callback.prepare(self.datamodule, self.model.evaluated)

    def _prepare_start(self, start: watch.StartFrom) -> None:
        """Find the weights of the other run, unless this one goes on from its own."""
        if start.run is None or good_checkpoint(self.run_dir)[0] is not None:
            return
        if self.options.ckpt_path is not None:
            insist([Problem("ckpt_path", str(self.options.ckpt_path), "training starts from start.run; keep one")])
        config = yaml.safe_load(dump_config(self._parser(self.subcommand), self.options))
        start.prepare(self.model, config, self.run_dir)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that keeps everything in the run directory and logs to TensorBoard there."""
        kwargs["default_root_dir"] = str(self.run_dir)
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif self.options.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(str(self.run_dir), name="tensorboard", version="")
        plugins = self.options.trainer.plugins or []
        plugins = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins]
        environment = cluster_environment()
        for kind, ours in ((ClusterEnvironment, environment), (CheckpointIO, DurableCheckpoints())):
            if ours is not None and not any(isinstance(plugin, kind) for plugin in plugins):
                plugins.append(ours)
        kwargs["plugins"] = plugins
        try:
            trainer: Trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, TypeError, ValueError, ModuleNotFoundError) as error:
            told = str(error).splitlines()[0]
            keys = [key for key in vars(self.options.trainer) if re.search(rf"\b{key}\b", told)] or ["accelerator"]
            given = ", ".join(f"trainer.{key}={self.options.trainer[key]!r}" for key in keys)
            raise BadInput(f"{given}: {told}; change that") from error
        return trainer

    def fit(self, **kwargs: Any) -> None:
        """Train, or go on, or say that there is nothing left to do."""
        if RunRecord(self.run_dir).is_finished():
            say(f"{self.run_dir} is finished; nothing to do (--fresh runs it again beside it)")
        else:
            self._train(kwargs.pop("ckpt_path", None), **kwargs)
        if self.trainer.is_global_zero:
            for line in closing_lines(self.run_dir):
                say(line)
            if not RunRecord(self.run_dir).is_finished():
                say("out of time; the same command continues")
                sys.exit(AGAIN)

    def _train(self, checkpoint: str | Path | None, **kwargs: Any) -> None:
        recorder = next(one for one in cast(Any, self.trainer).callbacks if isinstance(one, watch.RunRecorder))
        try:
            recorder.hold(self.trainer)
            if self.trainer.world_size == 1:  # else in `setup`: the choices of all processes must come first
                SaveConfig(self._parser(self.subcommand), self.options).setup(self.trainer, self.model, "fit")
            resumed, damaged = good_checkpoint(self.run_dir)
            for line in damaged:
                say(f"{line}; going on from {resumed}")
            say(f"{'Resuming' if resumed else 'Training'} in {self.run_dir}; {_describe(self)}")
            if self.trainer.is_global_zero:
                recorder.start = self._start(resumed or checkpoint)
            with reading(resumed or checkpoint):
                self.trainer.fit(**{**kwargs, "ckpt_path": resumed or checkpoint, **_PLAIN_DATA})
        except NotFinite as error:
            if not self.trainer.is_global_zero:
                raise
            raise self._with_remedy(error) from error
        finally:
            recorder.release()

    def _start(self, resumed: str | Path | None) -> dict[str, Any]:
        """Where this run comes from, and how its data look."""
        known = provenance(self.argv, self.trainer.strategy.root_device)
        return known | {"resumed": resumed and Path(resumed).name, "example": example(self.datamodule)}

    def _with_remedy(self, error: NotFinite) -> NotFinite:
        """Tell where the batch of a step that was not finite is found, what is saved, and what helps."""
        skips = self.model.finite.skip
        with suppress(Exception):  # the series and the record end with a good step, too
            writer(self.trainer).wait()
        last, _ = good_checkpoint(self.run_dir)
        known = {entry["sha256"]: entry["step"] for entry in saved_checkpoints(self.run_dir)}
        saved = f"last good checkpoint: {last}, of step {known.get(sha256(last))}" if last else "no checkpoint yet"
        lines = (
            "",
            f"its batch: data.generated.train.batch({error.step - 1}) of {self.run_dir / 'config.yaml'}",
            saved,
            "the same command meets the same step; add --fresh and a smaller learning rate, a smaller --model.clip,",
            "or --trainer.precision 32-true" + "; --model.nonfinite skip leaves out such updates" * (not skips),
        )
        return NotFinite(error.step, error.what, error.value, error.more + "\n  ".join(lines))

    def validate(self, **kwargs: Any) -> None:
        """Evaluate on every split and print the table."""
        with reading(self.options.ckpt_path):
            self.trainer.validate(**{**kwargs, "verbose": False, **_PLAIN_DATA})
        self._print_scores()

    def test(self, **kwargs: Any) -> None:
        """Evaluate on every split and print the table."""
        with reading(self.options.ckpt_path):
            self.trainer.test(**{**kwargs, "verbose": False, **_PLAIN_DATA})
        self._print_scores()

    def predict(self, **kwargs: Any) -> None:
        """Write the answer to every query."""
        with reading(self.options.ckpt_path):
            self.trainer.predict(**{**kwargs, "return_predictions": False, **_PLAIN_DATA})

    def _print_scores(self) -> None:
        for line in score_table(self.model.scores):
            say(line)


def _holds_files(directory: Path) -> bool:
    """Whether there is more than a lock, or what a crash has left of the very first files."""
    if not directory.is_dir():
        return False
    return any(not path.name.startswith(".") and path.name != "starts.jsonl" for path in directory.iterdir())


def _insist_on_same(saved: Path, new: str, parser: LightningArgumentParser) -> None:
    """Refuse to go on with another configuration than that of the run; a name changes nothing."""
    try:
        old, wanted = insist_on_mapping(saved), yaml.safe_load(new)
    except FileNotFoundError:
        raise BadInput(f"{saved}: not there; restore it, or start beside it with --fresh") from None
    except BadInput as error:
        raise BadInput(str(error), "restore it, or start beside it with --fresh") from None
    changes = of_the_outcome(differences({**old, "experiment": wanted["experiment"]}, wanted))
    if changes:  # keys that there were not when the run was begun have their defaults
        with suppress(ArgumentError):
            filled = yaml.safe_load(dump_config(parser, parser.parse_args(["--config", str(saved)])))
            changes = of_the_outcome(differences({**filled, "experiment": wanted["experiment"]}, wanted))
    if changes:
        shown = [*changes[:6], *([f"… and {len(changes) - 6} more"] if len(changes) > 6 else [])]
        told = f"{saved.parent} holds a run with another configuration; add --fresh or another --run_dir"
        raise BadInput(told, *shown)


def _task(data: RegimeDataModule) -> Any:
    return data.task


def _describe(cli: GrokCLI) -> str:
    parameters = sum(parameter.numel() for parameter in cli.model.net.parameters())
    rows = cli.datamodule.generated.train.rows
    queries = "an endless stream of queries" if rows is None else f"{rows:,} training queries"
    return f"{parameters:,} parameters, {queries}, {cli.trainer.max_steps:,} steps"


def run_lightning(argv: Sequence[str], cli: type[GrokCLI] | None = None) -> None:
    """Run `fit`, `validate`, `test` or `predict` with its arguments."""
    base, arguments = cli or GrokCLI, with_run(list(argv))
    for file in config_files(arguments):
        insist_on_mapping(file)
    known = base.subcommands()
    wanted = {command: known[command] for command in argv[:1] if command in known} or known
    # A parser takes a quarter of a second to make: of the four, make the one that is asked for.
    only = cast(type[GrokCLI], type(base.__name__, (base,), {"subcommands": staticmethod(lambda: wanted)}))
    only(
        GrokModule,
        RegimeDataModule,
        save_config_callback=SaveConfig,
        trainer_defaults={
            "max_epochs": -1,  # one endless epoch; max_steps ends it
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,  # LastCheckpoint and CheckpointSeries save
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
        },
        seed_everything_default=0,
        parser_kwargs={"prog": "grok", "exit_on_error": False, "allow_abbrev": False, **HELP},
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=arguments,
    )


HELP = {"description": HELP_TEXT, "formatter_class": HelpFormatter}
