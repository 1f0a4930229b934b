"""Loop counts: right answers by number of loops, counted as the model built with that number gives them."""

import pytest
import torch

from grok.callbacks import LoopCounts
from grok.circuits import loop_counts
from grok.data import NextToken, TwoHopComposition
from grok.errors import BadInput
from grok.models import LoopedTransformer
from grok.records import RunRecord
from grok.report.loop_counts import loop_story

SMALL = {"entities": 12, "relations": 4, "out_degree": 4, "phi": 2, "ood": 0.2, "iid": 0.2}
PLAIN, CLOSED = (TwoHopComposition(**SMALL, encoding=NextToken(supervise_eos=eos)) for eos in (False, True))


def make(regime, loops):
    torch.manual_seed(1)
    return LoopedTransformer(regime.task, width=16, layers=1, loops=loops, heads=2, init_std=0.5)


@pytest.mark.parametrize("regime", [PLAIN, CLOSED], ids=["one slot", "two slots"])
def test_an_answer_is_right_if_the_model_with_so_many_loops_gets_every_slot_right(regime):
    split = regime.splits["train_inferred"]
    found = loop_counts(make(regime, 2), split, (1, 3), batch=7)
    assert (found.loops, found.trained) == ((1, 2, 3), 2)
    for column, loops in enumerate(found.loops):
        with torch.no_grad():
            said = make(regime, loops).eval()(split.inputs, at=split.at).argmax(-1)
        right = ((said == split.targets) | ~split.mask).all(1)
        assert torch.equal(found.right[:, column], right)


def test_a_model_in_training_is_analysed_without_dropout_and_without_random_numbers():
    split = PLAIN.splits["train_inferred"]
    torch.manual_seed(0)
    model = LoopedTransformer(PLAIN.task, width=16, layers=1, loops=2, heads=2, dropout=0.5).train()
    before = torch.get_rng_state()
    first, again = (loop_counts(model, split) for _ in range(2))
    assert torch.equal(first.right, again.right)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())


def test_the_grid_names_the_numbers_and_knows_what_chance_gives():
    split = PLAIN.splits["train_inferred"]
    model = make(PLAIN, 2).train()
    grid = loop_counts(model, split).grid(1 / 12)
    assert model.training
    assert model.loops == 2
    assert grid.name == "loops/accuracy"
    assert grid.axes == {"loops": ("1", "2", "4", "8")}
    assert (grid.floor == torch.tensor(1 / 12)).all()
    assert (grid.n == len(split)).all()


@pytest.mark.parametrize("counts", [[], [0, 1], [1000]])
def test_numbers_that_cannot_be_are_refused(counts):
    with pytest.raises(BadInput, match="counts="):
        LoopCounts(counts=counts)


def record(directory, loops, layers=2):
    """A run's record with the bridge and the strength in S[0, r1] … at step 10."""
    names = [f"{grid}/S[{i},r1]" for grid in ("lens/mrr/bridge", "tracing/changed") for i in range(loops * layers + 1)]
    cell = {"value": 0.5, "low": 0.4, "high": 0.6, "floor": 0.1, "n": 9}
    run = RunRecord(directory)
    run.append([{"step": 10, "split": "test_inferred_iid", "name": name, **cell} for name in names])
    run.write_summary({"step": 10, "accuracy": {"test_inferred_iid": 0.9}})
    return run


def test_the_circuit_over_loops_is_drawn_and_a_run_without_analyses_is_told(tmp_path):
    runs = {n: [record(tmp_path / f"{n}.{seed}", n) for seed in range(2)] for n in (1, 2)}
    files = loop_story(runs, 2, ["test_inferred_iid"], tmp_path / "loops")
    assert [file.suffix for file in files] == [".png", ".svg"]
    assert "trained with 2" in files[1].read_text()
    with pytest.raises(BadInput, match=r"no lens/mrr/bridge of train_inferred in the record"):
        loop_story({1: [_scored(runs[1][0])]}, 2, ["train_inferred"], tmp_path / "loops")


def _scored(run):
    run.write_summary({"step": 10, "accuracy": {"train_inferred": 0.9}})
    return run
