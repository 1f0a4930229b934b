"""Causal tracing of one checkpoint at the size of Wang et al. 2024, ours beside the form of their released script.

8 layers, width 768, 300 two-hop queries, patches of S[1] … S[7] at h, r1, r2: 21 per query. *Reference form*: one query
at a time, one partial forward pass per patch, and the answer's rank by sorting a Python list of the vocabulary for
every position. *Loop, by counting*: the same without the lists. *Ours*: `grok.circuits.causal_tracing`. All in this
process, on the same model and queries; the first two are timed on a few queries and scaled. Ranks must be
equal but for near ties, which the order of summation decides.

    python scripts/benchmark/tracing.py                  # closed vocabulary, 2,206 rows
    python scripts/benchmark/tracing.py --vocab gpt2     # the 52,464 rows of the released code
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from report import Report, peak_gigabytes, smoke_option, synchronize
from torch import Tensor

from grok.circuits import Counterfactual, causal_tracing, choose_examples, composition_counterfactuals
from grok.data import NextToken, Split, TwoHopComposition
from grok.models import LoopedTransformer

STEPS = range(1, 8)


def rank_by_sorting(logits: Tensor, token: int) -> int:
    """Rank at the last position, every position `[T, V]` listed and sorted in Python as the released script does."""
    ranks = []
    for row in logits:
        values = row.cpu().numpy()
        pairs = [[index, values[index]] for index in range(len(values))]
        pairs.sort(key=lambda pair: pair[1], reverse=True)
        ranks.append([pair[0] for pair in pairs].index(token))
    return ranks[-1]


def rank_by_counting(logits: Tensor, token: int) -> int:
    """Rank at the last position by one comparison."""
    return int((logits[-1] > logits[-1, token]).sum())


@torch.no_grad()
def one_by_one(
    model: LoopedTransformer,
    split: Split,
    counterfactuals: Sequence[Counterfactual],
    rank: Callable[[Tensor, int], int],
) -> Tensor:
    """Ranks `[N, C, S]` with one forward pass per patch."""
    blocks = [block for _ in range(model.loops) for block in model.blocks]

    def logits(state: Tensor) -> Tensor:
        return F.linear(model.norm(state), model.embedding.weight)[0]

    ranks = torch.empty(len(split), len(counterfactuals), len(STEPS), dtype=torch.int64)
    for query in range(len(split)):
        clean = [state["resid"] for state in model.states(split.inputs[query : query + 1])]
        answer = int(split.targets[query, 0])
        rank(logits(clean[-1]), answer)  # the script ranks the clean run too
        for index, one in enumerate(counterfactuals):
            position = one.positions[0]
            other = [state["resid"] for state in model.states(one.inputs[query : query + 1, : position + 1])]
            for place, step in enumerate(STEPS):
                state = clean[step].clone()
                state[0, position] = other[step][0, position]
                for block in blocks[step:]:
                    state = block(state)
                ranks[query, index, place] = rank(logits(state), answer)
    return ranks


def main() -> None:
    """Time the three forms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", choices=["closed", "gpt2"], default="closed")
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--reference_examples", type=int, default=8, help="queries timed in the reference form")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="of ours; the fastest counts")
    smoke_option(parser)
    arguments = parser.parse_args()
    sizes, width = {"phi": 1.0, "test_size": arguments.examples}, 768
    if arguments.smoke:
        arguments.examples, arguments.reference_examples, arguments.repeats, width = 4, 2, 1, 24
        sizes = {"entities": 50, "relations": 10, "out_degree": 10, "phi": 1.0, "iid": 0.1}
    regime = TwoHopComposition(**sizes, encoding=NextToken(vocab=arguments.vocab))
    split = choose_examples(regime.splits["train_inferred"], arguments.examples)
    torch.manual_seed(0)
    model = LoopedTransformer(regime.task, width=width, layers=8, heads=12, init_std=0.05).eval().to(arguments.device)
    counterfactuals = composition_counterfactuals(split, regime.generated.facts)

    def measure(work: Callable[[], Tensor], repeats: int = 1) -> tuple[float, Tensor]:
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            result = work()
            synchronize(arguments.device)
            times.append(time.perf_counter() - began)
        return min(times), result

    def ours() -> Tensor:
        tracing = causal_tracing(model, split, counterfactuals, steps=STEPS, batch=arguments.batch)
        return tracing.outcome.patched.rank[..., 0].long()

    few = split.take(slice(0, arguments.reference_examples)).to(arguments.device)
    fewer = [one.take(slice(0, arguments.reference_examples)).to(few.inputs.device) for one in counterfactuals]
    scale = len(split) / len(few)
    seconds, ranks = measure(ours, arguments.repeats)
    memory = peak_gigabytes(arguments.device)
    sorting, sorted_ranks = measure(lambda: one_by_one(model, few, fewer, rank_by_sorting))
    counting, counted_ranks = measure(lambda: one_by_one(model, few, fewer, rank_by_counting))
    differences = (sorted_ranks - ranks[: len(few)]).abs()
    agree = torch.equal(sorted_ranks, counted_ranks)

    report = Report("tracing", arguments, arguments.device)
    scaled = f"({len(few)} queries, scaled)"
    for form, taken in (
        (f"reference form {scaled}", sorting * scale),
        (f"loop, by counting {scaled}", counting * scale),
        (f"ours (batch {arguments.batch})", seconds),
    ):
        report.row({"form": form, "s / checkpoint": taken, "ratio": sorting * scale / taken})
    equal, compared = int(differences.eq(0).sum()), differences.numel()
    report.end(
        f"{model.task.outputs:,} vocabulary rows, {len(split)} queries x {len(STEPS) * len(counterfactuals)} patches",
        f"peak memory of ours: {memory:.2f} GB with model and data",
        f"ranks equal to the reference form's: {equal} of {compared}, largest difference {int(differences.max())}",
    )
    if not agree or differences.max() > model.task.outputs / 1000:  # near ties are decided by rounding
        raise SystemExit("the ranks differ")


if __name__ == "__main__":
    main()
