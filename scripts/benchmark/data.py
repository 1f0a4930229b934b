"""Graph generation and batch production, against the algorithm of the reference notebook, and growth with entities.

*Reference*: what `composition.ipynb` of Wang et al. 2024 does, in plain Python: facts drawn entity by entity, every
pair of facts that share a bridge written as a prompt, and a batch taken from a list of dictionaries by torch's own
collate (without tokenising). *Ours*: `TwoHopComposition`, whole, and its training batches. Then the lazy mode, in which
compositions are not enumerated, from 10³ to 10⁶ entities of 20 facts each. Every row in a process of its own.

    OMP_NUM_THREADS=1 python scripts/benchmark/data.py
"""

from __future__ import annotations

import argparse
import json
import random
import time
from typing import Any

import numpy as np
import torch
from report import Report, in_a_process, peak_gigabytes, smoke_option, synchronize

from grok.data import TwoHopComposition


def reference_graph(entities: int, relations: int, degree: int, phi: float) -> list[dict[str, str]]:
    """Training items by the notebook's algorithm."""
    generator = np.random.default_rng(0)
    facts: list[tuple[str, str, str]] = []
    outgoing: dict[str, list[tuple[str, str]]] = {}
    for head in range(entities):
        for relation in generator.choice(relations, size=degree, replace=False).tolist():
            fact = (f"<e_{head}>", f"<r_{relation}>", f"<e_{generator.integers(entities)}>")
            facts.append(fact)
            outgoing.setdefault(fact[0], []).append(fact[1:])
    left_out = set(random.Random(0).sample(facts, round(0.05 * len(facts))))
    usual = set(facts) - left_out
    inferred = []
    for head, relation, bridge in facts:
        for second, tail in outgoing[bridge]:
            prompt = "".join([head, relation, second])
            item = {"input_text": prompt, "target_text": prompt + "".join([tail, "</a>"])}
            if (head, relation, bridge) in usual and (bridge, second, tail) in usual and random.random() > 0.005:
                inferred.append(item)
    atomic = [{"input_text": h + r, "target_text": h + r + t + "</a>"} for h, r, t in facts]
    return atomic + random.Random(0).sample(inferred, min(len(inferred), round(phi * len(usual))))


def batches_per_second(make: Any, count: int, device: str) -> float:
    """Batches that `make(start, stop)` yields in a second."""
    for _ in make(0, 2):
        pass
    synchronize(device)
    began = time.perf_counter()
    for _ in make(2, 2 + count):
        pass
    synchronize(device)
    return count / (time.perf_counter() - began)


def measure(kind: str, entities: int, batch: int, device: str) -> dict[str, Any]:
    """Seconds until training could begin, training items a second, peak memory of this process."""
    sizes = {"entities": entities, "relations": 200, "out_degree": 20} if entities >= 200 else {
        "entities": entities, "relations": 10, "out_degree": 10}  # fmt: skip
    began = time.perf_counter()
    if kind == "reference":
        items = reference_graph(sizes["entities"], sizes["relations"], sizes["out_degree"], 18.0)
        took = time.perf_counter() - began
        tensors = [{"input_ids": torch.zeros(10, dtype=torch.int64), "labels": torch.zeros(10, dtype=torch.int64)}]
        tensors *= len(items)  # tokenised once, before training
        loader = torch.utils.data.DataLoader(tensors, batch_size=batch, shuffle=True)  # type: ignore[arg-type]

        def make(start: int, stop: int) -> Any:
            return (one for one, _ in zip(loader, range(start, stop), strict=False))
    else:
        phi = (18.0 if entities >= 200 else 4.0) if kind == "ours" else 3.6
        regime = TwoHopComposition(**sizes, phi=phi, iid=0.005 if entities >= 200 else 0.1, lazy=kind == "lazy")
        regime.setup()
        took = time.perf_counter() - began
        make = regime.generated.train.to(device).batches
    rate = batches_per_second(make, 50, device) * batch
    return {"seconds": took, "rate": rate, "gigabytes": peak_gigabytes()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", nargs="+", type=int, default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--paper", type=int, default=2_000, help="entities of the graph that is enumerated")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    smoke_option(parser)
    options = parser.parse_args()
    if options.smoke:
        options.entities, options.paper, options.batch = [60], 60, 16
    if options.only:
        kind, entities = options.only[0], int(options.only[1])
        print("RESULT " + json.dumps(measure(kind, entities, options.batch, options.device)))
        return
    report = Report("data", options, options.device)
    rows = [("reference", options.paper), ("ours", options.paper), *(("lazy", count) for count in options.entities)]
    first: dict[str, Any] | None = None
    for kind, entities in rows:
        found = in_a_process(["--only", kind, str(entities), "--batch", str(options.batch), "--device", options.device])
        first = first or found
        beside = kind == "ours"  # the lazy rows are of other sizes
        report.row(
            {
                "form": kind,
                "entities": entities,
                "ready after, s": found["seconds"],
                "ratio": first["seconds"] / found["seconds"] if beside else None,
                "training items / s": found["rate"],
                "ratio of items": found["rate"] / first["rate"] if beside else None,
                "peak GB": found["gigabytes"],
            }
        )
    report.end()


if __name__ == "__main__":
    main()
