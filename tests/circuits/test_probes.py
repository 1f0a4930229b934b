"""Linear probes: what is linearly encoded is found, what is only memorised is not."""

import pytest
import torch

from grok.circuits.planted import planted
from grok.circuits.probes import _ridge_scores, linear_probes, probe_groups
from grok.data import ModularArithmetic, TwoHopComposition
from grok.errors import BadInput
from grok.models import LoopedTransformer

REGIME = TwoHopComposition(entities=12, relations=6, out_degree=5, phi=3, iid=0.2, ood=0.2)
SPLIT = REGIME.splits["train_inferred"].take(slice(0, 120))
FIRST = SPLIT.truth["facts"][:, 0]
BRIDGE = SPLIT.truth["bridge"][:, 0]


def make(task=REGIME.task) -> LoopedTransformer:
    torch.manual_seed(0)
    return LoopedTransformer(task, width=16, layers=2, loops=1, heads=2, init_std=0.3).double().eval()


def hand_made(monkeypatch, vectors):
    """A model whose only state is `vectors` `[N, T, D]` of the queries of `SPLIT`."""
    model = make()
    place = {tuple(row): index for index, row in enumerate(SPLIT.inputs.tolist())}
    monkeypatch.setattr(
        model, "states", lambda inputs, ids=None: [{"resid": vectors[[place[tuple(row)] for row in inputs.tolist()]]}]
    )
    return model


def test_a_linear_code_is_found_and_noise_is_not(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    code = torch.randn(12, 30, generator=generator)
    vectors = torch.randn(len(SPLIT), 3, 30, generator=generator)
    vectors[:, 1] = 100 + 0.01 * (code[BRIDGE] + 0.05 * vectors[:, 1])  # only standardised features show it
    probes = linear_probes(hand_made(monkeypatch, vectors), SPLIT, steps=[0], batch=17)
    grid = probes.grid()
    known = 1 - probes.unseen / len(probes.rows)
    assert known > 0.8
    assert probes.correct[:, 0, 1].mean() == pytest.approx(known)
    assert grid.above_floor[0].tolist() == [False, True, False]
    assert grid.floor.max() < 0.3
    assert grid.values[0, [0, 2]].max() < 0.3


def test_states_that_only_name_the_first_fact_are_memorised_not_read(monkeypatch):
    """Each first fact has a random state of its own, which says nothing of the bridge to one who has not seen it."""
    vectors = torch.randn(int(FIRST.max()) + 1, 200, generator=torch.Generator().manual_seed(1))
    model = hand_made(monkeypatch, vectors[FIRST][:, None].expand(-1, 3, -1))
    leaky = linear_probes(model, SPLIT, steps=[0], groups=torch.arange(len(SPLIT)))
    assert leaky.correct.mean() > 0.7
    honest = linear_probes(model, SPLIT, steps=[0])
    assert honest.correct.mean() < 0.3
    fit = [row for row in range(len(SPLIT)) if row not in honest.rows.tolist()]
    assert not set(FIRST[honest.rows].tolist()) & set(FIRST[fit].tolist())


def test_groups_are_held_out_whole_whatever_the_order_of_queries():
    model = make()
    probes = linear_probes(model, SPLIT, held_out=0.25)
    groups = len(set(FIRST.tolist()))
    held = set(FIRST[probes.rows].tolist())
    assert len(held) == round(0.25 * groups)
    assert sorted(probes.rows.tolist()) == [row for row, fact in enumerate(FIRST.tolist()) if fact in held]
    assert probes.trained + len(probes.rows) == len(SPLIT)
    order = torch.randperm(len(SPLIT), generator=torch.Generator().manual_seed(0))
    shuffled = linear_probes(model, SPLIT.take(order), held_out=0.25)
    assert set(order[shuffled.rows].tolist()) == set(probes.rows.tolist())
    torch.testing.assert_close(shuffled.correct.sum(0), probes.correct.sum(0))
    assert set(linear_probes(model, SPLIT, seed=1).groups.tolist()) != held


def test_classes_that_were_never_seen_are_wrong_and_counted():
    model = planted("bridge", REGIME.task, REGIME.generated.facts).model
    groups = BRIDGE.eq(BRIDGE[0]).long()  # one of two groups is held out: all of one bridge, or all others
    probes = linear_probes(model, SPLIT, groups=groups, held_out=0.5)
    assert probes.unseen == len(probes.rows) == int((groups == probes.groups[0]).sum())
    assert probes.correct.eq(0).all()
    assert probes.grid().n.eq(1).all()
    assert probes.grid().values.eq(0).all()


def test_the_grid_weighs_groups_and_not_their_queries():
    probes = linear_probes(make(), SPLIT)
    rows = [probes.correct[probes.groups == group].mean(0) for group in set(probes.groups.tolist())]
    torch.testing.assert_close(probes.grid().values, torch.stack(rows).mean(0))
    assert probes.grid().n.eq(len(rows)).all()


def test_scores_are_those_of_ridge_regression_by_gradient_zero():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (2, 20), generator=generator)
    for width in (5, 40):  # fewer and more features than examples: two ways to the same solution
        fit, check = (torch.randn(2, n, width, generator=generator).double() for n in (20, 4))
        fit[..., 0], check[..., 0] = 7, 8  # a feature that does not vary in training
        scores = _ridge_scores(fit, check, labels, 3, ridge=0.1)
        for side in range(2):
            for place in range(2):
                mean, std = fit[place].mean(0), fit[place].std(0, correction=0)
                std[0] = torch.inf
                x, z = (fit[place] - mean) / std, (check[place] - mean) / std
                y = torch.nn.functional.one_hot(labels[side], 3).double()
                # minimise mean |y - xW - b|² + λ|W|²: ordinary least squares with λ-rows, b free
                design = torch.cat([x, torch.ones(20, 1)], 1)
                extra = torch.cat([(0.1 * 20) ** 0.5 * torch.eye(width), torch.zeros(width, 1)], 1)
                solution = torch.linalg.lstsq(
                    torch.cat([design, extra]), torch.cat([y, torch.zeros(width, 3)])
                ).solution
                expected = torch.cat([z, torch.ones(4, 1)], 1) @ solution
                torch.testing.assert_close(scores[side, place], expected)


def test_the_planted_bridge_is_read_from_the_state_where_it_is_looked_up():
    model = planted("bridge", REGIME.task, REGIME.generated.facts).model
    probes = linear_probes(model, SPLIT)
    known = 1 - probes.unseen / len(probes.rows)
    assert known > 0.8
    assert probes.correct[:, 2:, 1].mean((0,)).tolist() == [pytest.approx(known)] * 3  # S[2 … 4, r1]
    assert probes.correct[:, 3:, 2].mean((0,)).tolist() == [pytest.approx(known, abs=0.05)] * 2  # copied to r2
    assert probes.correct[:, :2, 1].mean() < 0.4
    assert probes.correct[:, :, 0].mean() < 0.4
    assert probes.correct[:, :3, 2].mean() < 0.4


def test_groups_without_known_facts_are_the_beginnings_that_decide_the_column():
    bare = SPLIT.take(slice(None))
    bare = type(bare)(**{**vars(bare), "truth": {"bridge": SPLIT.truth["bridge"]}})

    def same(groups, columns):
        keys = [tuple(row[:columns]) for row in SPLIT.inputs.tolist()]
        pairs = set(zip(keys, groups.tolist(), strict=True))
        return len(pairs) == len(set(keys)) == len(set(groups.tolist()))

    assert same(probe_groups(bare, "bridge"), 2)
    assert same(probe_groups(bare, "h"), 2)  # each h is one beginning of length 1
    assert same(probe_groups(bare, "answer"), 3)
    assert torch.equal(probe_groups(SPLIT, "answer"), FIRST)
    sums = ModularArithmetic(modulus=7)
    probes = linear_probes(make(sums.task), sums.splits["train"], "answer")
    assert len(set(probes.groups.tolist())) == len(probes.rows)


def test_bad_input_of_probes():
    model = make()
    for wrong in ({"held_out": 0.0}, {"held_out": 1.0}, {"ridge": 0.0}):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            linear_probes(model, SPLIT, **wrong)
    with pytest.raises(BadInput, match="two groups"):
        linear_probes(model, SPLIT.take(slice(0, 1)))
    with pytest.raises(BadInput, match="no query of this split has one"):
        linear_probes(model, REGIME.splits["id_atomic"])
    several = type(SPLIT)(**{**vars(SPLIT), "truth": {"bridge": SPLIT.truth["bridge"].repeat(1, 2)}})
    with pytest.raises(BadInput, match=r"2 tokens per query: use one, bridge\[0\]"):
        linear_probes(model, several)
    assert linear_probes(model, several, "bridge[1]").correct.shape[1:] == (3, 3)
