"""Does a method grok sooner than AdamW? Steps, FLOPs and seconds to 95 % on held-out ID queries, at quickstart size.

Every method, the AdamW baseline included, is searched with the same number of settings on seed 100, and its best
setting is then run on seeds that the search has not seen. FLOPs are those of forward and backward pass, without the
optimizer's own (Muon's matrix products would add a tenth). Runs are `grok fit` with configs/quickstart.yaml without
circuit analyses; each keeps its directory, and the same command goes on where it was stopped.

    OMP_NUM_THREADS=1 python scripts/benchmark/grokking.py --workers 2
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from report import Report, smoke_option

ROOT = Path(__file__).resolve().parents[2]
SEARCH_SEED = 100
SPLIT = "test_inferred_iid"
STEPS = 1800

Setting = tuple[tuple[str, str], ...]


def settings() -> Mapping[str, list[Setting]]:
    """Six settings of each method, as arguments of `grok fit`."""

    def adamw(rate: str, decay: str, **schedule: str) -> Setting:
        options = {"lr": rate, "weight_decay": decay, "betas": "[0.9,0.98]", "fused": "true"}
        return _made("torch.optim.AdamW", options, schedule)

    def muon(rate: str, decay: str) -> Setting:
        return _made("grok.training.MuonAdamW", {"lr": rate, "weight_decay": decay, "betas": "[0.9,0.98]"}, {})

    def grokfast(rate: str, decay: str, alpha: str, lamb: str) -> Setting:
        options = {"lr": rate, "weight_decay": decay, "betas": "[0.9,0.98]", "alpha": alpha, "lamb": lamb}
        return _made("grok.training.GrokfastAdamW", {**options, "fused": "true"}, {})

    grid = [(rate, decay) for rate in ("1e-3", "2e-3", "4e-3") for decay in ("1", "2")]
    return {
        "AdamW, constant rate": [adamw(*one) for one in grid],
        "AdamW, linear decay": [adamw(*one, decay_from="600") for one in grid],
        "AdamW, cosine decay": [adamw(*one, decay_from="100", shape="cosine") for one in grid],
        "AdamW, weight decay 2x to 0": [adamw(*one, weight_decay="[2,0]") for one in grid],
        "Muon + AdamW": [muon(*one) for one in grid],
        "Grokfast-EMA + AdamW": [
            grokfast("2e-3", decay, alpha, lamb)
            for alpha, lamb in (("0.9", "1"), ("0.98", "0.5"), ("0.98", "2"))
            for decay in ("1", "2")
        ],
    }


def _made(optimizer: str, options: Mapping[str, str], schedule: Mapping[str, str]) -> Setting:
    chosen = {"warmup": "100", "decay_from": "null", **schedule}
    return (
        ("model.optimizer", optimizer),
        *((f"model.optimizer.{name}", value) for name, value in options.items()),
        *((f"model.schedule.{name}", value) for name, value in chosen.items()),
    )


def told(setting: Setting) -> str:
    """A setting in a few words."""
    left_out = ("betas", "fused", "warmup")
    words = [(key.rpartition(".")[2], value) for key, value in setting if key.count(".") > 1]
    return ", ".join(f"{name} {value}" for name, value in words if name not in left_out and value != "null")


def run(job: tuple[str, Setting, int, int]) -> dict[str, Any]:
    """One run to its end, or what it left when it was run before."""
    from grok.cli import main

    where, setting, seed, steps = job
    arguments = [part for key, value in setting for part in (f"--{key}", value)]
    with redirect_stdout(StringIO()):
        status = main([
        "fit", "--config", str(ROOT / "configs/quickstart.yaml"), "--run_dir", where, *arguments,
        "--seed_everything", str(seed), "--trainer.max_steps", str(steps), "--trainer.logger", "false",
        "--lens.enabled", "false", "--tracing.enabled", "false", "--figures.enabled", "false",
        "--series.enabled", "false", "--record.norms", "false", "--evaluation.every", "25",
        "--monitor.window", "1", "--monitor.stop_after", "0", "--monitor.lines", "false", "--model.fast", "true",
        ])  # fmt: skip
    if status:
        raise SystemExit(status)
    summary = json.loads((Path(where) / "summary.json").read_text())
    done = summary["step"]
    step = summary["grok_step"][SPLIT]
    return {
        "steps": step,
        "flops": None if step is None else summary["flops"] * step / done,
        "seconds": None if step is None else summary["train_seconds"] * step / done,
        "end": summary["accuracy"][SPLIT],
        "ms_per_step": 1000 * summary["train_seconds"] / done,
    }


def _name(method: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in method)


def main() -> None:
    """Search, run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("runs/benchmark_grokking"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--workers", type=int, default=1)
    smoke_option(parser)
    options = parser.parse_args()
    chosen = settings()
    if options.smoke:
        options.steps, options.seeds = 50, 1
        chosen = {method: found[:1] for method, found in list(chosen.items())[:1]}
    report = Report("grokking", options, threads=1)
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        best = {}
        search = [
            (str(options.directory / "search" / _name(method) / str(index)), setting, SEARCH_SEED, options.steps)
            for method, found in chosen.items()
            for index, setting in enumerate(found)
        ]
        outcomes = dict(zip([setting for _, setting, _, _ in search], pool.map(run, search), strict=True))
        for method, found in chosen.items():
            # Those that do not get there come last, the nearest first.
            best[method] = min(found, key=lambda one: (outcomes[one]["steps"] or 1e9, -outcomes[one]["end"]))
            for one in found:
                report.note({"search": method, "setting": told(one), **outcomes[one]})
        final = [
            (str(options.directory / "final" / _name(method) / str(seed)), setting, seed, options.steps)
            for method, setting in best.items()
            for seed in range(options.seeds)
        ]
        results = list(pool.map(run, final))
    for index, (method, setting) in enumerate(best.items()):
        runs = results[index * options.seeds : (index + 1) * options.seeds]
        there = [one for one in runs if one["steps"] is not None]
        for seed, one in enumerate(runs):
            report.note({"method": method, "seed": seed, **one})
        baseline = report.rows[0]["median steps"] if report.rows else None
        middle = _middle(runs, "steps")
        report.row(
            {
                "method": method,
                "best of 6 settings": told(setting),
                "grokked": f"{len(there)} of {len(runs)}",
                "median steps": middle,
                "range": f"{min(o['steps'] for o in there)}-{max(o['steps'] for o in there)}" if there else None,
                "baseline / steps": baseline / middle if baseline and middle else (1.0 if middle else None),
                "TFLOP": _middle(runs, "flops", 1e-12),
                "s": _middle(runs, "seconds"),
                "ms/step": _middle(runs, "ms_per_step"),
            }
        )
    report.end()


def _middle(runs: list[dict[str, Any]], key: str, unit: float = 1) -> float | None:
    """The median over all runs, of which those that never got there count as endless; None if that is endless."""
    middle = statistics.median([math.inf if one[key] is None else one[key] for one in runs])
    return None if math.isinf(middle) else middle * unit


if __name__ == "__main__":
    main()
