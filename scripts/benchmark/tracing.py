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
import platform
import resource
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
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
    arguments = parser.parse_args()
    regime = TwoHopComposition(phi=1.0, test_size=arguments.examples, encoding=NextToken(vocab=arguments.vocab))
    split = choose_examples(regime.splits["train_inferred"], arguments.examples)
    torch.manual_seed(0)
    model = LoopedTransformer(regime.task, width=768, layers=8, heads=12, init_std=0.05).eval().to(arguments.device)
    counterfactuals = composition_counterfactuals(split, regime.generated.facts)

    def measure(work: Callable[[], Tensor], repeats: int = 1) -> tuple[float, Tensor]:
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            result = work()
            times.append(time.perf_counter() - began)
        return min(times), result

    def ours() -> Tensor:
        tracing = causal_tracing(model, split, counterfactuals, steps=STEPS, batch=arguments.batch)
        return tracing.outcome.patched.rank[..., 0].long()

    few = split.take(slice(0, arguments.reference_examples)).to(arguments.device)
    fewer = [one.take(slice(0, arguments.reference_examples)).to(few.inputs.device) for one in counterfactuals]
    scale = len(split) / len(few)
    seconds, ranks = measure(ours, arguments.repeats)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sorting, sorted_ranks = measure(lambda: one_by_one(model, few, fewer, rank_by_sorting))
    counting, counted_ranks = measure(lambda: one_by_one(model, few, fewer, rank_by_counting))
    differences = (sorted_ranks - ranks[: len(few)]).abs()
    agree = torch.equal(sorted_ranks, counted_ranks)

    where = torch.cuda.get_device_name() if arguments.device != "cpu" else platform.processor() or platform.machine()
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{model.task.outputs:,} vocabulary rows, {len(split)} queries x {len(STEPS) * len(counterfactuals)} patches")
    print(f"{'form':<38}{'seconds per checkpoint':>24}{'ratio':>10}")
    scaled = f"({len(few)} queries, scaled)"
    print(f"{'reference form ' + scaled:<38}{sorting * scale:>24.1f}{1:>10.1f}")
    print(f"{'loop, by counting ' + scaled:<38}{counting * scale:>24.1f}{sorting / counting:>10.1f}")
    print(f"{f'ours (batch {arguments.batch})':<38}{seconds:>24.2f}{sorting * scale / seconds:>10.1f}")
    equal, compared = int(differences.eq(0).sum()), differences.numel()
    print(f"peak memory of ours: {memory:.2f} GB with model and data")
    print(f"ranks equal to the reference form's: {equal} of {compared}, largest difference {int(differences.max())}")
    if not agree or differences.max() > model.task.outputs / 1000:  # near ties are decided by rounding
        raise SystemExit("the ranks differ")


if __name__ == "__main__":
    main()
