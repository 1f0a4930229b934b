"""Optimizer steps at the size of Wang et al. 2024 (8 layers, width 768, batch 512), ours beside the reference form.

Both run through `grok fit` with configs/wang2024_composition.yaml, each in a process of its own, so that peak memory is
its own. The *reference form* has what the released code computes: 52,464 vocabulary rows, 10 positions, the read-out at
all of them, loss on `t` and `</a>`.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = [
    "--data.encoding", "grok.data.NextToken", "--data.encoding.vocab", "gpt2", "--data.encoding.pad", "10",
    "--data.encoding.supervise_eos", "true", "--model.read_out", "everywhere",
]  # fmt: skip


def measure(steps: int, extra: list[str]) -> dict[str, Any]:
    """Train `steps` optimizer steps here and report seconds and FLOPs per step and the peak memory of this process."""
    from grok.cli import main

    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        status = main([
            "fit", "--config", str(ROOT / "configs/wang2024_composition.yaml"), "--run_dir", str(run),
            "--trainer.max_steps", str(steps), "--trainer.logger", "false", "--model.block", str(steps),
            "--data.test_size", "16", "--record.norms", "false", "--series.enabled", "false",
            "--figures.enabled", "false", "--trainer.accelerator", "cpu", *extra,
        ])  # fmt: skip
        if status:
            raise SystemExit(status)
        summary = json.loads((run / "summary.json").read_text())
    return {
        "seconds_per_step": summary["train_seconds"] / steps,
        "tflop_per_step": summary["flops"] / steps / 1e12,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Run both forms and print the table."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--reference_steps", type=int, default=1)
    parser.add_argument("--only", choices=["ours", "reference"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        ours = arguments.only == "ours"
        result = measure(arguments.steps if ours else arguments.reference_steps, [] if ours else REFERENCE)
        print("RESULT " + json.dumps(result))
        return
    results = {}
    for form in ("reference", "ours"):
        command = [sys.executable, __file__, "--only", form, "--steps", str(arguments.steps)]
        command += ["--reference_steps", str(arguments.reference_steps)]
        output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        results[form] = json.loads(output.rpartition("RESULT ")[2])
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'form':<12}{'s/step':>10}{'TFLOP/step':>12}{'peak GB':>10}")
    for form, row in results.items():
        print(f"{form:<12}{row['seconds_per_step']:>10.2f}{row['tflop_per_step']:>12.3f}{row['peak_memory_gb']:>10.2f}")
    ratio = {key: results["reference"][key] / results["ours"][key] for key in results["ours"]}
    print(
        f"{'ratio':<12}"
        + "".join(f"{value:>{width}.2f}" for value, width in zip(ratio.values(), (10, 12, 10), strict=True))
    )


if __name__ == "__main__":
    main()
