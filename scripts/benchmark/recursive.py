"""A full lens trace of the recursive transformer at the size of He et al. 2026, ours beside the form of their code.

Width 1536, 2 x 6 cycles: 15 states, of which their code keeps the top token at each of the 5 positions, one query at
a time, with 16 prefix slots in every state. *Ours* is `grok.circuits.found` on the whole batch. All in this process;
forms with single queries are timed on a few and scaled. Top tokens of the batch must be those of the single queries.
Beside it causal tracing of a few queries, compact only.

    OMP_NUM_THREADS=1 python scripts/benchmark/recursive.py
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grok.circuits import causal_tracing, choose_examples, composition_counterfactuals, found
from grok.data import FactExposure, FillIn, Split
from grok.models import RecursiveTransformer


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


@torch.no_grad()
def one_by_one(model: RecursiveTransformer, split: Split) -> Tensor:
    """Top tokens `[N, S, T]`, a forward pass for each query and the read-out of each state."""
    tops = []
    for inputs in split.inputs.split(1):
        states = model.states(inputs)
        decoded = [{**state, "z_H": state[model.stream_at(index)]} for index, state in enumerate(states)]
        tops.append(torch.stack([model.readout(state).argmax(-1) for state in decoded], 1))
    return torch.cat(tops)


def main() -> None:
    """Time the forms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--few", type=int, default=10, help="queries timed one by one")
    parser.add_argument("--traced", type=int, default=2, help="queries whose states are patched")
    parser.add_argument(
        "--batch", type=int, default=160, help="rows, query x position, of a pass: more leave the cache"
    )
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    regime = FactExposure(phi=1.0, regime="natural", encoding=FillIn())
    split = choose_examples(regime.splits["test_inferred_ood"], arguments.queries)
    few = split.take(slice(0, arguments.few)).to(arguments.device)

    def made(prefix: int) -> RecursiveTransformer:
        torch.manual_seed(0)
        return RecursiveTransformer(regime.task, prefix=prefix).eval().to(arguments.device)

    paper, compact = made(16), made(0)
    alone_paper, _ = timed(lambda: one_by_one(paper, few))
    alone, tops = timed(lambda: one_by_one(compact, few))
    batch_paper, _ = timed(lambda: found(paper, split, batch=arguments.batch))
    batch, seen = timed(lambda: found(compact, split, batch=arguments.batch))
    chosen = split.take(slice(0, arguments.traced))
    counterfactuals = composition_counterfactuals(chosen, regime.generated.facts)
    traced, _ = timed(lambda: causal_tracing(compact, chosen, counterfactuals))

    where = torch.cuda.get_device_name() if arguments.device != "cpu" else platform.processor() or platform.machine()
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    scale = len(split) / len(few)
    print(f"{f'lens trace of {len(split)} queries x 15 states':<52}{'seconds':>9}{'ratio':>8}")
    for name, seconds in (
        (f"one by one, 16 prefix slots ({len(few)}, scaled)", alone_paper * scale),
        (f"one by one, compact ({len(few)}, scaled)", alone * scale),
        ("batch, 16 prefix slots", batch_paper),
        ("batch, compact", batch),
    ):
        print(f"{name:<52}{seconds:>9.1f}{alone_paper * scale / seconds:>8.1f}")
    patches = len(counterfactuals) * 15
    print(f"causal tracing, compact: {traced / len(chosen):.1f} s a query ({patches} patches)")
    equal = (seen.top[: len(few)] == tops.cpu()).double().mean()
    print(f"top tokens of the batch equal to those of single queries: {equal:.2%}")
    if equal < 0.999:  # near ties of a random model are decided by rounding
        raise SystemExit("the top tokens differ")


if __name__ == "__main__":
    main()
