"""Run directories written by hand, whose verdicts are known by construction."""

import json

import yaml

from grok.records import RunRecord

STEPS = (0, 100, 200, 300, 400, 500, 600, 700, 800)
ID, OOD = "test_inferred_iid", "test_inferred_ood"
NEW = ("test_inferred_new_old", "test_inferred_old_new", "test_inferred_new_new")


def rising(at: int, to: float = 1.0) -> list[float]:
    """0 before step `at`, `to` from then on."""
    return [to if step >= at else 0.0 for step in STEPS]


def rows(name, split, values, floor=0.0, n=100):
    return [
        {"step": step, "split": split, "name": name, "value": value, "low": 0.0, "high": 1.0, "floor": floor, "n": n}
        for step, value in zip(STEPS, values, strict=True)
    ]


def write_run(
    directory, regime="natural", seed=0, start=None, lines=(), layers=2, loops=2, graph=None, transfer=False, net=None
):
    """A finished run of 800 steps, 8 GFLOP and 800 seconds."""
    directory.mkdir(parents=True)
    data = {"entities": 50, "relations": 14, "out_degree": 10, "ood": 0.1, "iid": 0.1, "graph_seed": None}
    config = {
        "seed_everything": seed,
        "data": {
            "class_path": f"grok.data.{'NewKnowledge' if transfer else 'FactExposure'}",
            "init_args": {**data, **(graph or {}), "regime": regime},
        },
        "model": {
            "net": {"class_path": "grok.models.Some", "init_args": net or {"layers": layers, "loops": loops}},
        },
        "start": {"run": None if start is None else "elsewhere", "step": start or "last"},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    record = RunRecord(directory)
    record.append(lines)
    summary = {"step": 800, "flops": 8_000_000_000, "wall_seconds": 800.0, "finished": True}
    if start is not None:
        summary["start"] = {"run": "elsewhere", "step": 400, "milestone": start, "flops": 4_000_000_000}
    (directory / "summary.json").write_text(json.dumps(summary))


def pretraining(known=200, ood=300, bridge=200, ood_bridge=300, ood_to=1.0, strength=0.9, ood_strength=None):
    """Lines of a run that answers held-out ID and OOD queries, and has their bridges, from these steps on."""
    lines = [
        *rows("accuracy", "train_inferred", rising(100)),
        *rows("accuracy", ID, rising(known)),
        *rows("accuracy", OOD, rising(ood, ood_to)),
    ]
    decided = {ID: strength, OOD: strength if ood_strength is None else ood_strength}
    for split, at, answered in ((ID, bridge, bridge), (OOD, ood_bridge, ood)):
        found = [max(0.2, value) for value in rising(at)]  # chance finds the bridge in a fifth
        lines += rows("found/bridge", split, found, floor=0.2)
        lines += rows("tracing/changed/S[0,r1]", split, [1.0] * len(STEPS))
        for state, above in (("S[1,r1]", 0.0), ("S[2,r1]", decided[split]), ("S[4,r1]", -0.05)):
            lines += rows(f"tracing/changed/{state}", split, rising(answered, above + 0.05), floor=0.05)
        lines += rows("lens/mrr/bridge/S[2,r1]", split, found, floor=0.2)
        lines += rows("lens/mrr/bridge/S[1,r1]", split, [0.2] * len(STEPS), floor=0.2)
        lines += rows("lens/mrr/bridge/S[4,r1]", split, [1.0] * len(STEPS))  # it says the answer of the atomic fact
    return lines


def transfer(new_old=1.0, old_new=0.0, new_new=0.0, shortcut=0.3):
    """Lines of a fine-tuning."""
    lines = rows("accuracy", "atomic_new", rising(200))
    for split, value in zip(NEW, (new_old, old_new, new_new), strict=True):
        lines += rows("accuracy", split, rising(300, value), floor=0.02, n=60)
        lines += rows("baseline/shortcut", split, [shortcut] * len(STEPS), n=60)[:1]
    return lines


def as_published(root, seeds=(0, 1)):
    """An experiment in which everything that the paper says happens."""
    late = {"ood": 800, "ood_bridge": 600}
    regimes = {
        "natural": pretraining(**late),
        "both_full": pretraining(),
        "hop1_full": pretraining(ood=800, ood_bridge=300),
        "hop2_full": pretraining(ood=300, ood_bridge=900, strength=0.1),
    }
    for seed in seeds:
        for regime, lines in regimes.items():
            write_run(root / f"pretrain/{regime}/{seed}", regime, seed, lines=lines)
            value = 0.3 if regime == "hop2_full" else 1.0
            write_run(root / f"last/{regime}/{seed}", regime, seed, "last", transfer(value), transfer=True)
            write_run(root / f"scratch/{regime}/{seed}", regime, seed, None, transfer(0.3), transfer=True)
    return root
