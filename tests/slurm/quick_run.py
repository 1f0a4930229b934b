"""A run for the cluster."""

CONFIG = {
    "trainer": {"accelerator": "cpu", "max_steps": 1600},
    "data": {
        "class_path": "grok.data.TwoHopComposition",
        "init_args": {"entities": 30, "relations": 6, "out_degree": 6, "phi": 3, "ood": 0.1, "iid": 0.1, "batch": 64},
    },
    "model": {
        "net": {
            "class_path": "grok.models.LoopedTransformer",
            "init_args": {"width": 32, "heads": 2, "layers": 1, "loops": 2, "dropout": 0.1},
        },
        "block": 10,
    },
    "evaluation": {"every": 200},
    "series": {"every": 800},
    "last": {"every": 200},
    "figures": {"enabled": False},
}
"""About ten seconds of training: long enough for a signal to arrive, and with dropout, whose state must be restored."""
