"""Members trained as one `SeedEnsemble` beside the same members trained one after the other, at quickstart size.

    OMP_NUM_THREADS=1 python scripts/benchmark/ensemble.py --members 1 2 4 8

Both do the same optimizer steps from the same batches, with fused AdamW and clipping, in one process; the repeats
alternate. The table gives the median time of an optimizer step of one member, and the ratio alone / together.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import yaml
from report import Report, smoke_option, synchronize
from torch import nn

from grok.data import Batch, TwoHopComposition
from grok.models import LoopedTransformer
from grok.training import GrokModule, SeedEnsemble

CONFIG = yaml.safe_load((Path(__file__).resolve().parents[2] / "configs/quickstart.yaml").read_text())


class Members:
    """Modules with seeds 0, 1, …, each with its own data, optimizer and batches."""

    def __init__(self, count: int, device: str, steps: int, width: int, batch: int) -> None:
        self.modules, self.optimizers, self.batches = [], [], []
        net = partial(LoopedTransformer, **{**CONFIG["model"]["net"]["init_args"], "width": width})
        for seed in range(count):
            data = TwoHopComposition(seed=seed, **{**CONFIG["data"]["init_args"], "batch": batch})
            data.setup()
            module = GrokModule(data.task, net=net, seed=seed).to(device)
            self.modules.append(module)
            self.optimizers.append(torch.optim.AdamW(module.net.parameters(), lr=2e-3, weight_decay=2.0, fused=True))
            self.batches.append(list(data.generated.train.to(device).batches(0, steps)))
        self.ensemble = SeedEnsemble(self.modules)

    def alone(self, step: int) -> None:
        """One optimizer step of every member, one after the other."""
        for module, optimizer, batches in zip(self.modules, self.optimizers, self.batches, strict=True):
            module.loss(batches[step]).backward()
            self._finish(module, optimizer)

    def together(self, step: int) -> None:
        """One optimizer step of every member as one batched computation."""
        batches: list[Batch] = [batches[step] for batches in self.batches]
        self.ensemble.backward(batches)
        for module, optimizer in zip(self.modules, self.optimizers, strict=True):
            self._finish(module, optimizer)

    @staticmethod
    def _finish(module: GrokModule, optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_(module.net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


def milliseconds(do: Callable[[int], None], steps: int, device: str) -> float:
    """Mean time of a call over `steps` calls."""
    began = time.perf_counter()
    for step in range(steps):
        do(step)
    synchronize(device)
    return 1000 * (time.perf_counter() - began) / steps


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=512)
    smoke_option(parser)
    options = parser.parse_args()
    if options.smoke:
        options.members, options.steps, options.repeats, options.width, options.batch = [2], 2, 1, 16, 16
    report = Report("ensemble", options, options.device)
    for count in options.members:
        members = Members(count, options.device, options.steps, options.width, options.batch)
        members.alone(0), members.together(0)  # warm up
        times: dict[str, list[float]] = {"alone": [], "together": []}
        for _ in range(options.repeats):
            for kind in times:
                times[kind].append(milliseconds(getattr(members, kind), options.steps, options.device) / count)
        alone, together = (statistics.median(times[kind]) for kind in ("alone", "together"))
        report.row(
            {
                "members": count,
                "alone, ms per member and step": alone,
                "together, ms per member and step": together,
                "ratio": alone / together,
                "members together / one alone": count * together / alone,
            }
        )
    report.end()


if __name__ == "__main__":
    main()
