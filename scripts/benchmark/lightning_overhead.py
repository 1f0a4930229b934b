"""What the Trainer adds to an optimizer step, against a bare loop with the same model, batches and updates.

The bare loop and the Trainer with K = 1 and K = 50 optimizer steps a block alternate in one process; the table has the
least time of each over the rounds, as other work on a machine only adds, and the range of the ratios within a round.

    OMP_NUM_THREADS=1 python scripts/benchmark/lightning_overhead.py --sizes tiny quickstart
    OMP_NUM_THREADS=1 python scripts/benchmark/lightning_overhead.py --sizes 8 --batch 32 --steps 2 --blocks 1 2
"""

from __future__ import annotations

import argparse
from functools import partial

from report import Report, seconds, smoke_option
from sizes import SIZES, Bare, made, seconds_per_step_of_trainer


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "quickstart"])
    parser.add_argument("--blocks", nargs="+", type=int, default=[1, 50])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=100, help="timed steps, a multiple of every block")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    smoke_option(parser)
    options = parser.parse_args()
    if options.smoke:
        options.sizes, options.batch, options.steps, options.blocks, options.repeats = ["tiny"], 16, 4, [1, 2], 1
    report = Report("lightning_overhead", options, options.device)
    for name in options.sizes:
        precision = SIZES[name].precision if options.device.startswith("cuda") else "32-true"
        bare_times: list[float] = []
        times: dict[int, list[float]] = {block: [] for block in options.blocks}
        module, data = made(name, options.batch, options.device)
        bare = Bare(module, data, options.device, precision)
        bare.steps(0, 2)
        for _ in range(options.repeats):
            bare_times.append(seconds(partial(bare.steps, 0, options.steps), options.device) / options.steps)
            for block in options.blocks:
                trained, same = made(name, options.batch, options.device, block=block)
                times[block].append(
                    seconds_per_step_of_trainer(trained, same, options.steps, block, options.device, precision)
                )
        for block, ours in times.items():
            ratios = [one / other for one, other in zip(ours, bare_times, strict=True)]
            report.row(
                {
                    "size": name,
                    "batch": options.batch,
                    "K": block,
                    "bare, us / step": 1e6 * min(bare_times),
                    "Trainer, us / step": 1e6 * min(ours),
                    "Trainer / bare": min(ours) / min(bare_times),
                    "within a round": f"{min(ratios):.3f}-{max(ratios):.3f}",
                }
            )
    report.end()


if __name__ == "__main__":
    main()
