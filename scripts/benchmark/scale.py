"""One run on 1 and on 2 processes (gloo on CPUs, NCCL on GPUs): seconds a step, and the share of communication.

Both train the same global batch with one thread a process, through `grok fit`. Communication is timed apart: an
all-reduce of as many numbers as the model has weights, which is what data parallel training adds to a step, as far as
it is not hidden behind the backward pass.

    python scripts/benchmark/scale.py --sizes quickstart small
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from report import Report, smoke_option, synchronize
from torch import distributed, multiprocessing

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "tiny": ["--model.net.width", "16", "--data.batch", "32"],
    "quickstart": [],
    "small": ["--model.net.width", "256", "--data.batch", "512"],
}
"""Changes to configs/quickstart.yaml."""


def train(size: str, processes: int, steps: int, accelerator: str) -> dict[str, Any]:
    """The summary of a run, and its number of weights."""
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        arguments = [
            "fit", "--config", str(ROOT / "configs/quickstart.yaml"), "--run_dir", str(run), *SIZES[size],
            "--trainer.max_steps", str(steps), "--trainer.devices", str(processes), "--trainer.logger", "false",
            "--trainer.strategy", "ddp" if processes > 1 else "auto", "--trainer.accelerator", accelerator,
            "--evaluation.every", str(steps // 2), "--lens.enabled", "false", "--tracing.enabled", "false",
            "--figures.enabled", "false", "--series.every", str(steps), "--record.norms", "false",
            "--model.fast", "false",  # which on a GPU would be a graph for one process and none for two
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, "-m", "grok", *arguments], check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )
        last = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
        summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return {**summary, "weights": sum(one.numel() for name, one in last.items() if name.startswith("net."))}


def all_reduce(rank: int, port: int, numbers: int, device: str, result: Any) -> None:
    """Times an all-reduce of `numbers` float32 among two processes."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    cuda = device == "cuda"
    distributed.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=2)
    tensor = torch.zeros(numbers, device=f"cuda:{rank}" if cuda else "cpu")
    times = []
    for _ in range(20):
        distributed.barrier()
        synchronize(device)
        began = time.perf_counter()
        distributed.all_reduce(tensor)
        synchronize(device)
        times.append(time.perf_counter() - began)
    if rank == 0:
        result.value = statistics.median(times)
    distributed.destroy_process_group()


def communication(numbers: int, device: str) -> float:
    """Seconds of one all-reduce."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = multiprocessing.get_context("spawn").Value("d", 0.0)
    multiprocessing.spawn(all_reduce, (port, numbers, device, result), nprocs=2)
    return float(result.value)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["quickstart", "small"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    smoke_option(parser)
    options = parser.parse_args()
    if options.smoke:
        options.sizes, options.steps = ["tiny"], 4
    report = Report("scale", options, options.device, threads=1)
    for size in options.sizes:
        accelerator = "gpu" if options.device == "cuda" else "cpu"
        runs = {count: train(size, count, options.steps, accelerator) for count in (1, 2)}
        alone, both = (1000 * runs[count]["train_seconds"] / options.steps for count in (1, 2))
        shared = 1000 * communication(runs[1]["weights"], options.device)
        report.row(
            {
                "size": size,
                "weights": runs[1]["weights"],
                "1 process, ms / step": alone,
                "2 processes, ms / step": both,
                "speed-up": alone / both,
                "all-reduce, ms": shared,
                "share of communication": shared / both,
            }
        )
    report.end()


if __name__ == "__main__":
    main()
