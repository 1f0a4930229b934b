"""A full lens trace of the recursive transformer at the size of He et al. 2026, ours beside the form of their code.

Width 1536, 2 x 6 cycles: 15 states, of which their code keeps the top token at each of the 5 positions, one query at
a time, with 16 prefix slots in every state. *Ours* is `grok.circuits.found` on the whole batch. All in this process;
forms with single queries are timed on a few and scaled. Top tokens of the batch must be those of the single queries.
Beside it causal tracing of a few queries, compact only.

    OMP_NUM_THREADS=1 python scripts/benchmark/recursive.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from report import Report, smoke_option, synchronize
from torch import Tensor

from grok.circuits import causal_tracing, choose_examples, composition_counterfactuals, found
from grok.data import FactExposure, FillIn, Split
from grok.models import RecursiveTransformer


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds and result."""
    began = time.perf_counter()
    result = work()
    synchronize(device)
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
    smoke_option(parser)
    arguments = parser.parse_args()
    sizes, net, device = {"phi": 1.0}, {}, arguments.device
    if arguments.smoke:
        arguments.queries, arguments.few, arguments.traced = 4, 2, 1
        sizes = {"entities": 60, "relations": 10, "out_degree": 8, "phi": 1.0, "iid": 0.1, "ood": 0.2}
        net = {"width": 32, "multiple": 8, "low_cycles": 2}
    regime = FactExposure(**sizes, regime="natural", encoding=FillIn())
    split = choose_examples(regime.splits["test_inferred_ood"], arguments.queries)
    few = split.take(slice(0, arguments.few)).to(arguments.device)

    def made(prefix: int) -> RecursiveTransformer:
        torch.manual_seed(0)
        return RecursiveTransformer(regime.task, prefix=prefix, **net).eval().to(arguments.device)

    paper, compact = made(16), made(0)
    alone_paper, _ = timed(lambda: one_by_one(paper, few), device)
    alone, tops = timed(lambda: one_by_one(compact, few), device)
    batch_paper, _ = timed(lambda: found(paper, split, batch=arguments.batch), device)
    batch, seen = timed(lambda: found(compact, split, batch=arguments.batch), device)
    chosen = split.take(slice(0, arguments.traced))
    counterfactuals = composition_counterfactuals(chosen, regime.generated.facts)
    traced, _ = timed(lambda: causal_tracing(compact, chosen, counterfactuals), device)

    report = Report("recursive", arguments, device)
    scale = len(split) / len(few)
    for name, seconds in (
        (f"one by one, 16 prefix slots ({len(few)}, scaled)", alone_paper * scale),
        (f"one by one, compact ({len(few)}, scaled)", alone * scale),
        ("batch, 16 prefix slots", batch_paper),
        ("batch, compact", batch),
    ):
        report.row({"lens trace": name, "s": seconds, "ratio": alone_paper * scale / seconds})
    equal = (seen.top[: len(few)] == tops.cpu()).double().mean()
    report.end(
        f"causal tracing, compact: {traced / len(chosen):.2f} s a query ({len(counterfactuals) * 15} patches)",
        f"top tokens of the batch equal to those of single queries: {equal:.2%}",
    )
    if equal < 0.999:  # near ties of a random model are decided by rounding
        raise SystemExit("the top tokens differ")


if __name__ == "__main__":
    main()
